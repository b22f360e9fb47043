"""What was compiled is kept, so that a run that starts again starts soon."""

from collections.abc import Iterator, Mapping
import contextlib
import pathlib
from typing import Any
import warnings

import jax
from jax.experimental.compilation_cache import compilation_cache

from awconv_jax.train import logging

PLACE = '.jax_cache'  # Beside a run's directory.
LEAST = 0.1  # Compiled in less, a program is not worth a file [s].
_OPTIONS = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
)


@contextlib.contextmanager
def kept(workdir: pathlib.Path) -> Iterator[None]:
  """Has JAX keep programs in `.jax_cache` beside a run's directory.

  Or where JAX_COMPILATION_CACHE_DIR says; JAX_ENABLE_COMPILATION_CACHE=false
  has it keep none. That they cannot be kept is told, and ends nothing.
  Afterwards JAX's options are as they were.
  """
  option, least = _OPTIONS
  before = {name: getattr(jax.config, name) for name in _OPTIONS}
  if not before[option]:
    _use({option: str(workdir.parent / PLACE), least: LEAST})
  place, shown, told = getattr(jax.config, option), warnings.showwarning, []

  def show(message, *args, **kwargs):
    if 'persistent compilation cache' not in str(message):
      shown(message, *args, **kwargs)
    elif not told:
      told.append(message)
      reason = str(message).rpartition(': ')[2]
      logging.info(
          f'warning: compiled programs in {place} cannot all be used or kept: '
          f'{reason}; the run goes on, and compiles them each time. The '
          'directory may be removed'
      )

  warnings.showwarning = show
  try:
    yield
  finally:
    warnings.showwarning = shown
    if not before[option]:
      _use(before)


def _use(options: Mapping[str, Any]) -> None:
  for name, value in options.items():
    jax.config.update(name, value)
  # It stays with the first directory that it was told of, or with none.
  compilation_cache.reset_cache()
