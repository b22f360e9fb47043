"""One undisturbed run, with which those that faults befell are compared."""

import pytest
import runs
from watched_run import use_devices


@pytest.fixture(scope='session')
def reference(tmp_path_factory):
  """The directory of a run that nothing befell."""
  workdir = tmp_path_factory.mktemp('reference') / 'run'
  code, _, err, _ = runs.end(runs.start(workdir))
  assert code == 0 and not err, err
  return workdir


@pytest.fixture(scope='module', autouse=True)
def as_processes_of_their_own_do(quick_compiles_of_module):
  """What runs in this process computes the same bits."""
  with pytest.MonkeyPatch.context() as patch:
    use_devices(patch, 1)
    yield
