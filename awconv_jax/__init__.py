"""AW-convolution (https://arxiv.org/abs/2108.08205) in JAX and Flax."""

import os
import re
import signal
import sys

# As in train.py: a tool of ours, and no other program, is about to start.
if (
    os.path.basename(sys.argv[0] if sys.argv else '') == 'awconv-train'
    or sys.argv[:1] == ['-m']
    and re.search(
        r' -m (awconv_jax\.tools\.|benchmarks\b)', ' '.join(sys.orig_argv)
    )
) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  signal.signal(
      signal.SIGINT, lambda *_: os._exit(os.write(2, b'interrupted\n') and 1)
  )

import importlib
from typing import TYPE_CHECKING, Any

from awconv_jax.layers.aw_conv import AWConv
from awconv_jax.models import create as create_model
from awconv_jax.models import create_detector
from awconv_jax.ops.aw_conv import aw_conv
from awconv_jax.surgery import merge_variables, replace_conv

if TYPE_CHECKING:
  from awconv_jax.pretrained import from_pretrained, load, save_pretrained

__all__ = [
    'AWConv',
    'aw_conv',
    'create_detector',
    'create_model',
    'from_pretrained',
    'load',
    'merge_variables',
    'replace_conv',
    'save_pretrained',
]
__version__ = '0.1.0'


def __getattr__(name: str) -> Any:
  """Imports Flax NNX, and what needs [train], where they are first used."""
  if name == 'nnx':
    return importlib.import_module('awconv_jax.nnx')
  if name not in ('from_pretrained', 'load', 'save_pretrained'):
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module('awconv_jax.pretrained'), name)
