"""Tests of checkpoint: the same bits come back, or an earlier checkpoint."""

import os
import pathlib
import shutil
import signal

import commands
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import pytest
from watched_run import assert_same_bits

from awconv_jax.errors import InputError
from awconv_jax.train import checkpoint
from awconv_jax.train.checkpoint import Checkpointer

ITERATOR = {'epoch': 1, 'position': [3, 4], 'nested': {'seed': None}}


def make_state(seed):
  rng = np.random.default_rng(seed)
  return {
      'params': {
          'conv1': {'kernel': np.float32(rng.normal(size=(64, 65)))},
          'half': rng.normal(size=(7,)).astype(jnp.bfloat16),
      },
      'stats': (np.float32([np.nan, -0.0, np.inf, rng.normal()]),),
      'step': np.int32(seed),
      'rate': np.float32(rng.normal()),
      'mask': rng.random(9) > 0.5,
      'key': rng.integers(0, 2**32, 2).astype(np.uint32),
      'empty': np.zeros((0, 3), np.float32),
      'none': None,
  }


def on_device(state):
  return jax.tree.map(jnp.array, state)


def save(directory, *steps, keep=3):
  with Checkpointer(directory, keep=keep) as checkpointer:
    for step in steps:
      checkpointer.save(step, on_device(make_state(step)), ITERATOR)


def restore(directory):
  """Returns what restore_latest gives, and the lines it reported."""
  lines = []
  with Checkpointer(directory, keep=3, report=lines.append) as checkpointer:
    return checkpointer.restore_latest(on_device(make_state(0))), lines


def damaged(directory):
  folder = pathlib.Path(f'{directory}_damaged')
  return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


@pytest.fixture
def directory(tmp_path):
  """A directory with good checkpoints 1 and 2."""
  save(tmp_path / 'checkpoints', 1, 2)
  return tmp_path / 'checkpoints'


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0x04
  path.write_bytes(content)


def test_round_trip(directory, monkeypatch):
  (step, state, iterator_state), lines = restore(directory)
  assert step == 2 and iterator_state == ITERATOR and not lines
  assert_same_bits(state, on_device(make_state(2)))
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
  # It can be donated.
  update = jax.jit(lambda x: x + 1, donate_argnums=0)
  kernel = update(update(state['params']['conv1']['kernel']))
  want = make_state(2)['params']['conv1']['kernel'] + 1 + 1
  np.testing.assert_array_equal(kernel, want)
  # By a relative path, into an abstract template.
  monkeypatch.chdir(directory.parent)
  with Checkpointer('checkpoints', keep=2) as checkpointer:
    template = jax.eval_shape(lambda: on_device(make_state(0)))
    _, state, _ = checkpointer.restore_latest(template)
  assert_same_bits(state, make_state(2))


def test_a_sharded_array_is_saved_as_a_whole(tmp_path):
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
  sharding = jax.sharding.NamedSharding(mesh, jax.P('data'))
  state = {'x': jax.device_put(np.arange(16.0), sharding)}
  with Checkpointer(tmp_path / 'checkpoints', keep=2) as checkpointer:
    checkpointer.save(1, state, {})
    _, got, _ = checkpointer.restore_latest(state)
  assert got['x'].sharding == sharding
  np.testing.assert_array_equal(got['x'], np.arange(16.0))


def test_a_later_donation_does_not_reach_a_save():
  state = {'w': jnp.ones(9)}
  host = checkpoint._to_host(state)['w']
  assert not np.shares_memory(host, np.asarray(state['w']))


# Orbax leaves reads behind when one of them fails.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('harm', [flip, pathlib.Path.unlink])
def test_harm_to_any_file_is_never_silent(directory, harm):
  fallbacks, good = 0, directory.with_name('good')
  shutil.copytree(directory, good)
  files = [path for path in (directory / '2').rglob('*') if path.is_file()]
  assert len(files) > 8
  for name in files:
    for folder in (directory, f'{directory}_damaged'):
      shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, directory)
    harm(name)
    (step, state, iterator_state), lines = restore(directory)
    assert iterator_state == ITERATOR
    assert_same_bits(state, make_state(step))
    if step == 2:
      assert not lines and damaged(directory) == [], name
      continue
    fallbacks += 1
    assert step == 1 and damaged(directory) == ['2'], name
    (line,) = lines
    assert f'checkpoint 2 in {directory} is damaged' in line
    assert line.endswith('using checkpoint 1') and '\n' not in line
  assert fallbacks >= 4


def test_every_number_and_the_iterator_state_are_in_the_digest(directory):
  """Damage that Orbax reads without complaint: other values, well-formed."""
  other = make_state(2)
  other['params']['conv1']['kernel'][5, 5] += 1
  with Checkpointer(directory, keep=3) as checkpointer:
    checkpointer.save(3, on_device(other), ITERATOR)
  shutil.rmtree(directory / '2/state')
  (directory / '3/state').rename(directory / '2/state')
  shutil.rmtree(directory / '3')
  (step, state, _), lines = restore(directory)
  assert step == 1 and 'do not match their digest' in lines[0]
  assert_same_bits(state, make_state(1))
  path = directory / '1/meta/metadata'
  path.write_text(path.read_text().replace('"epoch": 1', '"epoch": 2'))
  with pytest.raises(InputError, match='do not match their digest'):
    restore(directory)


def test_renamed_and_empty_steps_are_set_aside_each_by_itself(directory):
  (directory / '2').rename(directory / '9')
  (directory / '4').mkdir()
  pathlib.Path(f'{directory}_damaged/4').mkdir(parents=True)
  (step, _, _), lines = restore(directory)
  assert step == 1 and 'checkpoint 4 in' in lines[1] and len(lines) == 2
  assert damaged(directory) == ['4', '4.1', '9']
  assert restore(directory)[1] == []
  save(directory, 2, 3, keep=2)  # And training goes on.
  assert sorted(path.name for path in directory.iterdir()) == ['2', '3']
  assert_same_bits(restore(directory)[0][1], make_state(3))


def test_all_damaged(directory):
  for step in ('1', '2'):
    flip(directory / step / 'meta' / 'metadata')
  both = ''.join(f'checkpoint {s} in {directory} is damaged .*' for s in (2, 1))
  for _ in range(2):  # Nothing is moved, or a second run would start anew.
    with pytest.raises(InputError, match=f'{both}move all away$'):
      restore(directory)
  assert damaged(directory) == []


def test_another_model_is_no_damage(directory):
  # Damage ahead of it stays as well until a checkpoint is really used.
  (directory / '3').mkdir()
  for change, words in (
      ({'rate': np.zeros(3)}, 'rate is float32.. there and float32.3. here'),
      ({'more': np.zeros(3)}, 'more is absent there'),
      ({'mask': None}, 'mask is bool.9. there and absent here'),
  ):
    with Checkpointer(directory, keep=2) as checkpointer:
      with pytest.raises(InputError, match=f'2 in .* another model: .*{words}'):
        checkpointer.restore_latest(on_device(make_state(0) | change))
      assert checkpointer.steps() == [1, 2, 3]
  assert damaged(directory) == []


@pytest.mark.parametrize('call', ['save', '__exit__'])
def test_a_failed_save_surfaces(directory, monkeypatch, call):
  def full(*args, **kwargs):
    raise OSError('disk full')

  checkpointer = Checkpointer(directory, keep=2)
  checkpointer.save(3, on_device(make_state(3)), {})  # It is read back.
  monkeypatch.setattr(os, 'rename', full)  # Orbax's last act of a save.
  checkpointer.save(4, on_device(make_state(4)), {})
  arguments = (5, {'w': jnp.ones(3)}, {}) if call == 'save' else ()
  with pytest.raises(InputError, match='cannot be written in .*disk full'):
    getattr(checkpointer, call)(*arguments)
  monkeypatch.undo()
  assert restore(directory)[0][0] == 3


def test_a_first_checkpoint_that_cannot_be_read_ends_the_run(
    tmp_path, monkeypatch
):
  """Whatever place it is that does not keep what it is given."""
  rename = os.rename

  def lose(source, to, *args, **kwargs):
    rename(source, to, *args, **kwargs)
    if pathlib.Path(to).name == '3':
      (pathlib.Path(to) / 'meta/metadata').write_bytes(b'')

  directory = tmp_path / 'checkpoints'
  with Checkpointer(directory, keep=2) as checkpointer:
    with monkeypatch.context() as patch:
      patch.setattr(os, 'rename', lose)  # Orbax's last act of a save.
      with pytest.raises(InputError, match='damaged.*as soon as it was wri'):
        checkpointer.save(3, on_device(make_state(3)), {})
    checkpointer.save(4, on_device(make_state(4)), {})
  assert restore(directory)[0][0] == 4


def test_a_directory_that_has_gone_is_not_made_anew(directory):
  with Checkpointer(directory, keep=2) as checkpointer:
    shutil.rmtree(directory)
    with pytest.raises(InputError, match='has gone while training'):
      checkpointer.save(3, on_device(make_state(3)), {})
  assert not directory.exists()


def test_what_is_not_as_checkpoints_are_is_told(directory):
  (directory / '3').write_text('')
  for name in ('012', '99999999999', '٣'):
    (directory / name).mkdir()
  (step, _, _), lines = restore(directory)
  assert step == 2 and damaged(directory) == ['3']
  assert sum('not named as checkpoints are' in line for line in lines) == 3


def start(call, devices=1):
  """Starts a Python process that runs `call` of this module."""
  code = f'import test_checkpoint as t; t.{call}'
  paths = f'{commands.ROOT}/tests{os.pathsep}{commands.ROOT}'
  return commands.start('-c', code, devices=devices, env={'PYTHONPATH': paths})


def killed_while_saving(directory, last):
  """Dies by SIGKILL while Orbax completes step 3."""
  rename = os.rename

  def killing_rename(source, target):
    if not last or pathlib.Path(target).name == '3':
      os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)

  os.rename = killing_rename
  save(directory, 3)


@pytest.mark.parametrize(
    'last', [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_kill_during_a_save(directory, last):
  child = start(f'killed_while_saving({str(directory)!r}, {last})')
  output = child.communicate(timeout=60)
  assert child.returncode == -signal.SIGKILL, output
  left = [p.name for p in directory.iterdir() if not p.name.isdecimal()]
  assert len(left) == 1 and left[0].startswith('3.')
  (step, state, _), lines = restore(directory)
  assert step == 2 and not lines
  assert_same_bits(state, make_state(2))
  save(directory, 3)
  assert sorted(p.name for p in directory.iterdir()) == ['1', '2', '3']
  assert restore(directory)[0][0] == 3


def one_of_two(directory, port, index):
  """Restores 2 (written by one process), saves 3, 4; 4 is then damaged."""
  jax.distributed.initialize(f'127.0.0.1:{port}', 2, index)
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
  replicated = jax.sharding.NamedSharding(mesh, jax.P())
  assert len(jax.devices()) == 8

  def place(state):
    return jax.jit(lambda: on_device(state), out_shardings=replicated)()

  def check(step):
    template = place(make_state(0))
    got, state, iterator_state = checkpointer.restore_latest(template)
    assert got == step and iterator_state == ITERATOR
    leaves = map(jax.tree.leaves, (state, make_state(step)))
    for leaf, want in zip(*leaves, strict=True):
      assert leaf.sharding == replicated
      for shard in leaf.addressable_shards:
        assert_same_bits(shard.data, want)

  with Checkpointer(directory, keep=3) as checkpointer:
    check(2)
    for step in (3, 4):
      checkpointer.save(step, place(make_state(step)), ITERATOR)
    assert checkpointer.steps() == [2, 3, 4]
    multihost_utils.sync_global_devices('saved')
    if index == 0:
      flip(pathlib.Path(directory) / '4' / 'meta' / 'metadata')
    multihost_utils.sync_global_devices('damaged')
    check(3)
    assert checkpointer.steps() == [2, 3]
    # One process alone cannot read it: both must go back.
    if index == 1:
      checkpointer._read = lambda step: 1 / 0 if step == 3 else read(step)
    read = Checkpointer._read.__get__(checkpointer)
    check(2)
    assert checkpointer.steps() == [2]
    checkpointer.save(3, place(make_state(3)), ITERATOR)


def test_two_processes(directory):
  port = commands.free_port()
  calls = [f'one_of_two({str(directory)!r}, {port}, {i})' for i in range(2)]
  children = [start(call, devices=4) for call in calls]
  try:
    ends = [child.communicate(timeout=90) for child in children]
  finally:
    for child in children:
      child.kill()
  assert [child.returncode for child in children] == [0, 0], ends
  assert 'checkpoint 4 in' in ends[0][0] and 'moved to' in ends[0][0]
  assert 'moved to' not in ends[1][0]
  assert damaged(directory) == ['3', '4']
  (step, state, _), lines = restore(directory)
  assert step == 3 and not lines
  assert_same_bits(state, make_state(3))
