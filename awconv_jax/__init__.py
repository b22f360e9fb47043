"""AW-convolution (https://arxiv.org/abs/2108.08205) in JAX and Flax."""

import os
import re
import signal
import sys

# As in train.py: a tool of ours, and no other program, is about to start.
if (
    sys.argv[:1] == ['-m']
    and re.search(
        r' -m (awconv_jax\.tools\.|benchmarks\b)', ' '.join(sys.orig_argv)
    )
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
  signal.signal(
      signal.SIGINT, lambda *_: os._exit(os.write(2, b'interrupted\n') and 1)
  )

from awconv_jax.layers.aw_conv import AWConv
from awconv_jax.models import create as create_model
from awconv_jax.models import create_detector
from awconv_jax.ops.aw_conv import aw_conv
from awconv_jax.surgery import merge_variables, replace_conv

__all__ = [
    'AWConv',
    'aw_conv',
    'create_detector',
    'create_model',
    'merge_variables',
    'replace_conv',
]
__version__ = '0.1.0'
