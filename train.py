"""Trains a network; awconv_jax/tools/train.py says how, and so does --help."""

import os
import signal

# An exception amid the imports, which take seconds, crashes some of them;
# `command_line.run` takes this back.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  signal.signal(
      signal.SIGINT, lambda *_: os._exit(os.write(2, b'interrupted\n') and 1)
  )

from awconv_jax.tools import train

if __name__ == '__main__':
  train.start()
