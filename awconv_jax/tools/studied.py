"""One run of a study, for `tools.study`: train.py that ends with its parent."""

import os
import signal
import sys
import threading

from awconv_jax.tools import train


def _end_with_parent() -> None:
  """Waits until nobody holds the other end of standard input; then stops."""
  while os.read(0, 1):
    pass
  os.kill(os.getpid(), signal.SIGTERM)  # It saves first, if there is anything.


if __name__ == '__main__':
  sys.argv[0] = 'train.py'  # What its log proposes to start.
  threading.Thread(target=_end_with_parent, daemon=True).start()
  train.start()
