"""Runs, data and weights in a bucket, which gcp-storage-emulator has here.

What a bucket cannot do, such as a lock, an append or a rename, is tested for
what stands in its place.
"""

import json
import os
import subprocess
import sys
import threading
import types

import bucket
import commands
import cv2
import fake_tfds
import jax.numpy as jnp
import numpy as np
import pytest
from watched_run import assert_same_runs, use_devices

from awconv_jax import inference, places, weights
from awconv_jax.errors import InputError
from awconv_jax.train import checkpoint, lease

pytestmark = bucket.needed


@pytest.fixture(scope='module')
def served():
  """A bucket that this process and those that it starts read and write."""
  process, variables = bucket.start()
  with pytest.MonkeyPatch.context() as patch:
    bucket.use(patch, variables)
    yield f'gs://{bucket.NAME}'
  process.kill()
  process.wait()


@pytest.fixture
def quick(monkeypatch):
  """Locks are renewed, and become stale, sooner."""
  monkeypatch.setattr(lease, 'RENEWED', 0.2)
  monkeypatch.setattr(lease, 'STALE', 2.0)


def leave_lock(path, **changes):
  """Writes the lock of a process of this machine."""
  owner = lease._Lease(path)._owner | changes
  path.write_text(json.dumps(owner))


def test_one_run_at_a_time(served, quick):
  path = places.at(f'{served}/one/.lock')
  with lease.held(path) as check:
    with pytest.raises(InputError, match=f'under way, process {os.getpid()}'):
      with lease.held(path):
        pass
    check()
  assert not path.exists()


def test_the_lock_of_a_run_that_is_gone_is_taken_over(served, quick, capsys):
  path = places.at(f'{served}/gone/.lock')
  gone = subprocess.Popen(['true'])
  gone.wait()
  # A process that has ended, or whose number another has now; one elsewhere
  # that does not renew it; what nobody can read.
  leave_lock(path, pid=gone.pid)
  with lease.held(path):
    pass
  leave_lock(path, started='1')
  with lease.held(path):
    pass
  leave_lock(path, machine='another')
  assert capsys.readouterr().out == ''
  with lease.held(path):
    pass
  assert 'waiting up to 2 s' in capsys.readouterr().out
  path.write_text('{')
  with lease.held(path) as check:
    # It has been taken over meanwhile: this run must write no more.
    leave_lock(path, key='of another', host='elsewhere')
    threading.Event().wait(1.0)
    with pytest.raises(InputError, match='on elsewhere, which took it over'):
      check()
  assert 'of another' in path.read_text()


def test_a_lock_whose_write_was_not_read_back_is_still_ours(tmp_path):
  """Another that is there, or cannot be reached, ends the run in one line."""
  (tmp_path / 'a%20b').mkdir()
  path = types.SimpleNamespace(parent=f'file://{tmp_path}/a%20b', name='.lock')
  held, told = lease._Lease(path), []
  held.take(told.append)
  assert (tmp_path / 'a%20b/.lock').exists() and not told
  read, held._read = held._read, lambda: 1 / 0
  with pytest.raises(ZeroDivisionError):
    held.renew()
  held._renewed = -1e9
  with pytest.raises(InputError, match='20b cannot be written: division'):
    held.check()
  held._read = read
  held.renew()
  held.check()
  other = json.dumps(held._owner | {'key': 'of another', 'host': 'elsewhere'})
  (tmp_path / 'a%20b/.lock').write_text(other)
  held.renew()
  with pytest.raises(InputError, match='on elsewhere, which took it over'):
    held.check()


def test_of_two_that_come_at_once_one_gets_the_lock(served, quick):
  path, got = places.at(f'{served}/both/.lock'), []
  start, end = threading.Barrier(2), threading.Event()

  def take():
    start.wait()
    try:
      with lease.held(path):
        got.append('held')
        end.wait(5)
    except InputError:
      got.append('refused')
      end.set()

  both = [threading.Thread(target=take) for _ in range(2)]
  for thread in both:
    thread.start()
  for thread in both:
    thread.join()
  assert sorted(got) == ['held', 'refused']


def test_names_of_classes_come_from_a_bucket(served):
  path = places.at(f'{served}/named/classes.json')
  path.write_text('["a", "b"]')
  task = types.SimpleNamespace(num_classes=2)
  model = inference.Model(task, None, f'{served}/named', {}, 'weights', 3)
  assert model.names == ['a', 'b'] and model.kept_categories is None


def test_files_that_grow_are_uploaded_whole(served):
  folder = places.at(f'{served}/grows')
  (folder / 'old.txt').write_text('before\n')
  with places.Growing(folder, ('old.txt', 'absent.txt')) as growing:
    (growing.path / 'inner').mkdir()
    for name in ('old.txt', 'inner/new.txt'):
      with (growing.path / name).open('a') as file:
        file.write('more\n')
    growing.sync(60)  # Not yet.
    assert (folder / 'old.txt').read_text() == 'before\n'
    growing.sync()
    here = growing.path
  assert not here.exists()
  assert (folder / 'old.txt').read_text() == 'before\nmore\n'
  assert (folder / 'inner/new.txt').read_text() == 'more\n'


def test_a_model_is_written_and_read(served):
  described = weights.read('digits')
  told = weights.describe(weights.locate('digits'))
  variables = {'params': {'head': {'bias': described['fc.bias']}}}
  path = f'{served}/models/one/model.safetensors'
  weights.save(path, variables, description=told)
  (found,) = weights.read(f'{served}/models/one').values()
  assert found.tobytes() == described['fc.bias'].tobytes()
  assert weights.describe(path)['config'] == told['config']


def test_a_folder_is_moved(served):
  folder = places.at(f'{served}/moved/a')
  (folder / 'x/y').write_text('1')
  (folder / 'z').write_text('2')
  places.move(folder, folder.parent / 'b/4')
  assert not folder.exists()
  assert (folder.parent / 'b/4/x/y').read_text() == '1'
  assert [p.name for p in folder.parent.iterdir()] == ['b']


@pytest.mark.slow
def test_a_run_with_directory_and_data_in_a_bucket(
    served, tmp_path, monkeypatch, quick_compiles
):
  """Its checkpoint, metrics and picture are those of one on this machine."""
  use_devices(monkeypatch, 1)
  rows = []
  for i in range(40):
    image = np.full((8, 8, 3), 5 * i, np.uint8)
    rows.append(
        {'image': cv2.imencode('.png', image)[1].tobytes(), 'label': i % 10}
    )
  splits = {'train': rows, 'test': rows[:8]}
  fake_tfds.write(tmp_path, 'tiny', fake_tfds.labelled(10), splits)
  for file in (tmp_path / 'tiny/1.0.0').iterdir():
    place = places.at(f'{served}/tfds/tiny/1.0.0/{file.name}')
    place.write_bytes(file.read_bytes())
  flags = (
      *(commands.TINY, '--config.data.name=tfds:tiny', '--config.num_epochs=1'),
      *('--config.batch_size=8', '--config.eval_batch_size=8'),
  )
  runs = (tmp_path / 'run', tmp_path), (f'{served}/run', f'{served}/tfds')
  for workdir, data in runs:
    arguments = (*flags, f'--workdir={workdir}', f'--config.data.dir={data}')
    code, out, err = commands.tool('train', *arguments)
    assert code == 0, err
  assert f'{served}/run/curves.png' in out
  assert_same_runs(tmp_path / 'run', f'{served}/run', 5)


def test_a_damaged_checkpoint_is_set_aside(served):
  directory = places.at(f'{served}/damaged/checkpoints')
  with checkpoint.Checkpointer(directory, keep=2) as checkpointer:
    for step in (1, 2):
      checkpointer.save(step, {'params': jnp.full(5, step)}, {})
    checkpointer.wait()
    for file in (directory / '2/state/d').iterdir():
      file.write_bytes(file.read_bytes()[:-1] + b'?')
    step, state, _ = checkpointer.restore_latest({'params': jnp.zeros(5, int)})
  assert step == 1 and (state['params'] == 1).all()
  assert (directory.parent / 'checkpoints_damaged/2/meta').exists()
  # What has not the mark of a save that ended is not one.
  (directory / '1/commit_success.txt').unlink()
  assert checkpoint.steps_in(directory) == []


def test_without_the_extra_one_line_names_it(monkeypatch):
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  places._open_buckets.cache_clear()
  with pytest.raises(InputError) as caught:
    places.at('gs://bucket/a')
  line = "gs:// needs 'gcsfs': pip install 'awconv_jax[gcs]'"
  assert str(caught.value) == line


@bucket.needed
def test_a_bucket_that_does_not_answer_is_one_line(monkeypatch):
  bucket.use(monkeypatch, bucket.environment(commands.free_port()))
  monkeypatch.setattr(lease, 'PATIENCE', 0.5)
  path = places.at('gs://bucket/run/.lock')
  with pytest.raises(InputError, match='cannot be written: no answer for'):
    with lease.held(path):
      pass


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
  (tmp_path / 'a.png').write_text('before')
  with pytest.raises(OSError, match='full'):
    with places.for_writing(tmp_path / 'a.png') as file:
      file.write_text('half')
      raise OSError('full')
  assert [p.name for p in tmp_path.iterdir()] == ['a.png']
  assert (tmp_path / 'a.png').read_text() == 'before'
  (tmp_path / 'b.png').symlink_to(tmp_path / 'a.png')
  for name in ('a.png', 'b.png'):  # The link stays one.
    with places.for_writing(tmp_path / name) as file:
      file.write_text(name)
    assert (tmp_path / 'a.png').read_text() == name
  assert (tmp_path / 'b.png').is_symlink()
