"""Eight CPU devices and one compilation cache for the whole suite."""

import gc
import importlib.metadata
import os
import pathlib
import signal
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Before JAX is imported. Sub-processes inherit these; `commands.start` has them
# see another number of devices. Tests that use one of the devices pay nothing
# for the others, and those of the loop a tenth [CPU time, cold cache].
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
# Compiling takes most of the suite's time, and many tests compile the same.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache/jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
os.environ.setdefault('MPLBACKEND', 'agg')
# Not the home directory.
os.environ['TFDS_DATA_DIR'] = str(ROOT / '.cache/tensorflow_datasets')
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
pytest_plugins = ['fault_report']
# A shell has what it starts in the background ignore some, and its children.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
  if signal.getsignal(number) is signal.SIG_IGN:
    signal.signal(number, signal.SIG_DFL)
# Programs and what was traced stay, by the million; looking for garbage among
# them as often as usual takes a tenth of the time.
gc.set_threshold(100_000, 20, 50)


def pytest_configure(config):
  """Leaves to `make test-slow` how XLA compiles fusions for users."""
  quick = 'not slow' in config.option.markexpr
  if quick and importlib.metadata.version('jaxlib').startswith('0.10.'):
    # As it did before; it takes half of the time. XLA ends at unknown flags.
    os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'


def _quick_compiles():
  """Compiling takes most of the time, and numbers do not need speed."""
  import jax  # After the environment above is set.

  option = 'jax_disable_most_optimizations'
  before = jax.config.read(option)
  jax.config.update(option, True)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(option.upper(), '1')  # For sub-processes.
    yield
  jax.config.update(option, before)


# For a single test, the others of its file being compiled in earnest; for all.
quick_compiles = pytest.fixture(_quick_compiles)
quick_compiles_of_module = pytest.fixture(_quick_compiles, scope='module')
