"""Damaged checkpoints: the same bits, or those of the one before, or no run."""

import os
import shutil

from harms import HARMS
import pytest
import runs
from watched_run import saved_arrays

from awconv_jax.errors import InputError
from awconv_jax.train.checkpoint import Checkpointer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.faults('bytes'),
    # Orbax leaves reads behind when one of them fails.
    pytest.mark.filterwarnings(
        'ignore::pytest.PytestUnraisableExceptionWarning'
    ),
]

FILES = 10  # Of a checkpoint; some hold the same.
EACH = [f'{harm} {number}' for harm in HARMS for number in range(FILES)]


@pytest.fixture
def workdir(reference, tmp_path):
  shutil.copytree(reference / 'checkpoints', tmp_path / 'checkpoints')
  return tmp_path


@pytest.fixture(scope='module')
def arrays(reference):
  return {step: saved_arrays(reference, step) for step in (8, 12)}


def restored(workdir, arrays):
  """Restores as a run does; returns the step, and the lines on it."""
  lines, directory = [], workdir / 'checkpoints'
  with Checkpointer(directory, keep=2, report=lines.append) as checkpointer:
    step, state, _ = checkpointer.restore_latest(arrays[12])
  got, want = (
      {name: leaf.tobytes() for name, leaf in tree.items()}
      for tree in (state, arrays[step])
  )
  assert got == want
  return step, lines


def assert_held(workdir, arrays):
  step, lines = restored(workdir, arrays)
  if step == 12:
    assert not lines
    return
  (line,) = lines
  place = workdir / 'checkpoints'
  assert line.startswith(f'checkpoint 12 in {place} is damaged'), line
  assert line.endswith('using checkpoint 8') and '\n' not in line
  assert os.path.lexists(workdir / 'checkpoints_damaged/12')


def files_of(workdir, step):
  """Returns the files of a checkpoint, whose names are partly random."""
  root = workdir / 'checkpoints' / str(step)
  files = (path for path in root.rglob('*') if path.is_file())
  return sorted(files, key=lambda path: (path.parent, path.stat().st_size))


@pytest.mark.parametrize('fault', runs.cases(EACH, every=17))
def test_a_file_of_a_checkpoint(workdir, arrays, fault):
  harm, number = fault.split()
  files, others = files_of(workdir, 12), files_of(workdir, 8)
  at = int(number) * len(files) // FILES
  HARMS[harm](files[at], others[at * len(others) // len(files)])
  assert_held(workdir, arrays)


def in_12(act):
  return lambda root: act(root / 'checkpoints/12')


WHOLE = {
    'emptied': in_12(lambda step: (shutil.rmtree(step), step.mkdir())),
    'a_file': in_12(lambda step: (shutil.rmtree(step), step.write_text('x'))),
    'a_link': in_12(lambda s: (shutil.rmtree(s), s.symlink_to('nowhere'))),
    'no_meta': in_12(lambda step: shutil.rmtree(step / 'meta')),
    'no_state': in_12(lambda step: shutil.rmtree(step / 'state')),
    'no_data': in_12(lambda step: shutil.rmtree(step / 'state/d')),
    'of_step_8': in_12(
        lambda s: (shutil.rmtree(s), shutil.copytree(s.with_name('8'), s))
    ),
    'meta_of_8': in_12(
        lambda s: (
            shutil.rmtree(s / 'meta'),
            shutil.copytree(s.with_name('8') / 'meta', s / 'meta'),
        )
    ),
    'state_of_8': in_12(
        lambda s: (
            shutil.rmtree(s / 'state'),
            shutil.copytree(s.with_name('8') / 'state', s / 'state'),
        )
    ),
}


@pytest.mark.parametrize('fault', runs.cases(WHOLE, every=4))
def test_a_checkpoint_as_a_whole(workdir, arrays, fault):
  WHOLE[fault](workdir)
  assert_held(workdir, arrays)


# Both of them: what is there stays, and the run is not begun anew.
BOTH = ('half', 'zeros', 'empty', 'removed', 'noise', 'a_folder', 'deep')


@pytest.mark.parametrize('harm', runs.cases(BOTH, every=9))
def test_all_checkpoints(workdir, arrays, harm):
  for step in (8, 12):
    path = workdir / f'checkpoints/{step}/meta/metadata'
    HARMS[harm](path, path.with_name('commit_success.txt'))
  for _ in range(2):
    with pytest.raises(InputError, match='8 in .*move all away$') as caught:
      restored(workdir, arrays)
    assert '\n' not in str(caught.value)
  names = sorted(path.name for path in (workdir / 'checkpoints').iterdir())
  assert names == ['12', '8'] and not (workdir / 'checkpoints_damaged').exists()


@pytest.mark.parametrize('name', ['012', '12.tmp', 'x', '-3', '١٢', ' 12'])
def test_what_is_no_checkpoint(workdir, arrays, name):
  shutil.copytree(workdir / 'checkpoints/8', workdir / 'checkpoints' / name)
  step, said = restored(workdir, arrays)
  assert step == 12
  # What looks like a number is told of.
  assert [name in line for line in said] == [True] * name.isdecimal()
  assert (workdir / 'checkpoints' / name).exists()
