"""The disk is full, or cannot be written: one line, and nothing lost."""

import contextlib
import shutil
import subprocess

import pytest
import runs

pytestmark = pytest.mark.faults('disk')

# One act fails, or that and all that follow; every place of a run has some.
_ONCE = [f'ENOSPC@{act}' for act in (1, 3, 5, 6, 8, 11, 13, 17, 22, 30, 44)]
_ONCE += [
    f'{error}@{act}' for error in ('EDQUOT', 'EIO') for act in (4, 10, 26)
]
_STAYS = [f'ENOSPC@{act}+' for act in (2, 7, 9, 12, 14, 19, 25, 31, 42, 50)]
_STAYS += [
    f'{e}@{n}+' for e in ('EROFS', 'EACCES', 'EDQUOT') for n in (2, 16, 33)
]
_SIZES = [f'fsize@{size}' for size in (0, 100, 500, 1000, 2000, 4000, 8000)]


def assert_it_goes_on(workdir, reference, code, err):
  assert 'Traceback' not in err
  if code:
    runs.assert_one_line(code, err)
  runs.assert_as_if_nothing_had_been(workdir, reference)


@pytest.mark.parametrize('fault', runs.cases(_STAYS + _ONCE + _SIZES))
def test_an_act_fails(reference, tmp_path, fault, record_property):
  code, _, err, seconds = runs.befallen(tmp_path / 'run', fault)
  record_property('end', seconds)
  assert_it_goes_on(tmp_path / 'run', reference, code, err)


@contextlib.contextmanager
def small_disk(place, size):
  place.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'none', str(place)]
  if subprocess.run(command, capture_output=True).returncode:
    pytest.skip('a small disk cannot be mounted here')
  try:
    yield
  finally:
    subprocess.run(['umount', str(place)], check=True)


@pytest.mark.parametrize('kilobytes', runs.cases(range(20, 400, 30)))
def test_a_disk_that_fills(reference, tmp_path, kilobytes, record_property):
  with small_disk(tmp_path / 'disk', f'{kilobytes}k'):
    workdir = tmp_path / 'disk/run'
    process = runs.start(workdir)
    code, _, err, seconds = runs.end(process, limit=2 * runs.SECONDS)
    record_property('end', seconds)
    if workdir.exists():
      shutil.copytree(workdir, tmp_path / 'run')
  assert_it_goes_on(tmp_path / 'run', reference, code, err)
