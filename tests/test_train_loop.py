"""The training loop end to end, on the shrunk shipped config, in process."""

import contextlib
import json
import re
import shutil

import fake_tfds
import jax
import numpy as np
import pictures
import pytest
import tiny
import tiny_scenes
from watched_run import assert_same_runs, logged, rows_of, saved_arrays

from awconv_jax import errors
from awconv_jax.train import checkpoint, logging, preemption, rundir
from awconv_jax.train import loop as train_loop
from awconv_jax.train import step as train_step
from configs import imagenet

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def config(overrides={}, **arguments):  # noqa: B006
  result = tiny.get_config(**arguments)
  result.update_from_flattened_dict(overrides)
  return result


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """An uninterrupted run."""
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, train_loop.train(config(), str(workdir))


def test_a_run_leaves_config_metrics_logs_and_checkpoints(whole):
  workdir, result = whole
  # Half an epoch of 1,437 images in batches of 32.
  assert (result.step, result.total_steps) == (22, 22)
  assert result.stopped_by is None
  saved = json.loads((workdir / 'config.json').read_text())
  assert saved == json.loads(json.dumps(config().to_dict()))
  rows = rows_of(workdir)
  steps = [row['step'] for row in rows if 'train/loss' in row]
  assert steps == list(range(1, 23))
  losses = logged(workdir, 'train/loss')
  assert np.mean(losses[-5:]) < np.mean(losses[:5])
  assert [r['step'] for r in rows if 'eval/top1' in r] == [11, 22]
  assert rows[-1]['eval/num_examples'] == 360
  assert rows[-1]['eval/top1'] == result.metrics['top1']
  assert list((workdir / 'tensorboard').glob('events.*'))
  kernel = 'stage1_block1/conv1/attention/pointwise1/kernel'
  assert kernel in (workdir / 'parameters.txt').read_text()
  names = sorted(p.name for p in (workdir / 'checkpoints').iterdir())
  assert names == ['11', '22']
  *_, record = checkpoint.records(workdir / 'checkpoints')
  assert record['commit'] == rundir.commit()
  told = rundir.finished(workdir)
  assert told['starts'] == record['starts'] and len(told['starts']) == 1
  assert told['metrics'] == result.metrics and told['config'] == saved
  assert told['parameters'] > 0 and told['multiply_adds'] > 0


def test_a_stopped_run_ends_with_the_bits_of_an_uninterrupted_one(
    whole, tmp_path, monkeypatch, capfd
):
  # Signals where an evaluation and a checkpoint are due, amid the evaluation,
  # which has 7 batches, and its next try, and between two.
  for asked, step in ((11, 11), (4, 11), (7 + 6, 17), (5 + 3, 22)):
    with monkeypatch.context() as patch:
      answers = [None] * (asked - 1) + ['SIGTERM']
      stops = contextlib.nullcontext(iter(answers).__next__)
      patch.setattr(preemption, 'stop_requests', lambda stops=stops: stops)
      stopped = train_loop.train(config(), str(tmp_path))
    assert (stopped.step, stopped.stopped_by) == (step, 'SIGTERM')
  resumed = r'.*resumed from the checkpoint of step '
  for words in (
      f'{resumed}22',
      rf'checkpoint 22 in .* is damaged.*\n{resumed}17',
  ):
    capfd.readouterr()
    result = train_loop.train(config(), str(tmp_path))
    assert re.search(words, capfd.readouterr().out)
    assert result.metrics == whole[1].metrics
    assert_same_runs(whole[0], tmp_path, 22)
    files = (tmp_path / 'checkpoints/22').rglob('*')
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])


@pytest.mark.slow
def test_a_run_may_shard_its_state_and_stop_doing_so(tmp_path, monkeypatch):
  create, cut = train_step.create_state, []

  def watched(*args, **kwargs):
    state = create(*args, **kwargs)
    leaves = jax.tree.leaves((state.opt_state, state.ema))
    cut.append(any(not leaf.is_fully_replicated for leaf in leaves))
    return state

  monkeypatch.setattr(train_step, 'create_state', watched)
  wide = {'model.width': 8, 'num_epochs': 0.1, 'ema_decay': 0.9}
  one, two = (
      train_loop.train(config(wide | {'shard_state': shard}), str(tmp_path))
      for shard in (True, False)
  )
  assert cut == [True, False] and one.step == 4
  assert one.metrics == two.metrics


def test_a_finished_run_is_evaluated_again_in_batches_of_any_size(whole):
  workdir, first = whole
  before = (workdir / 'metrics.jsonl').read_text()
  again = train_loop.train(config({'eval_batch_size': 360}), str(workdir))
  assert again.step == again.total_steps
  assert again.metrics['num_examples'] == 360
  assert again.metrics == pytest.approx(first.metrics, rel=1e-6)
  assert (workdir / 'metrics.jsonl').read_text() == before


def test_what_is_due_shortly_before_the_end_is_left_to_it():
  due = [step for step in range(1, 12) if train_loop._is_due(step, 11, 5)]
  assert due == [5, 11]


def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
  # Between the two checkpoints the rate, then the parameters, explode.
  rate = {'optimizer.learning_rate': 1e30}
  wild = config({'checkpoint_every_epochs': 0.02} | rate, schedule='constant')
  with pytest.raises(errors.DivergenceError) as caught:
    train_loop.train(wild, str(tmp_path))
  words = r'is (nan|inf) at step \d+; the last checkpoint in .* is of step '
  kept = max(int(path.name) for path in (tmp_path / 'checkpoints').iterdir())
  assert re.search(f'{words}{kept}; .*learning_rate', str(caught.value))
  rows = rows_of(tmp_path)
  assert all(np.isfinite(list(r.values())).all() for r in rows)
  for step in (tmp_path / 'checkpoints').iterdir():
    for name, leaf in saved_arrays(tmp_path, int(step.name)).items():
      assert np.isfinite(leaf).all(), name


def test_statistics_that_no_loss_shows_end_the_run_and_are_not_kept(tmp_path):
  # float32 holds the images, 1e20 at most, and not their squares.
  vast = config({'task.std': (1e-18,), 'num_epochs': 0.1})
  words = (
      'stem_norm/var is inf at step 1; there is no checkpoint yet; in another'
  )
  with pytest.raises(errors.DivergenceError, match=words) as caught:
    train_loop.train(vast, str(tmp_path))
  assert '\n' not in str(caught.value)
  assert not list(tmp_path.glob('checkpoints/*'))
  log = logging.Log(tmp_path, 0, 9, steps_per_epoch=3.0, batch_size=8)
  for good, wrong, words in (
      (0.0, -1e-9, 'norm/var is -1e-09 at step 3'),
      (-1.0, np.nan, 'norm/mean is nan at step 3'),
      (-1.0, np.inf, 'ema/kernel is inf at step 3'),
  ):
    name = words.partition(' ')[0]
    for value in (good, wrong):
      state = {name: np.array([1.0, value]), 'step': np.int32(3)}
      expected = pytest.raises(errors.DivergenceError, match=words)
      with contextlib.nullcontext() if value is good else expected:
        log.check(3, state)


@pytest.mark.parametrize(
    'key, value, words',
    [
        ('batch_size', 33, 'config.batch_size=33 .* multiple of 8,'),
        ('eval_batch_size', 7, 'config.eval_batch_size=7 '),
        ('accumulation_steps', 3, 'of 24, .* config.accumulation_steps=3'),
        ('task.mean', (1.0, 2.0), 'config.task.mean.*1 channel'),
        ('model.num_classes', 11, "num_classes=11 must be 10, as 'digi"),
        ('data.train_split', 'trian', "'trian'.*train"),
        ('seed', 2**32, 'config.seed=4294967296 must be less than 4294967296'),
        ('init_skip', ('head',), r"init_skip=\('head',\) needs .*init_from"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(tmp_path, key, value, words):
  with pytest.raises(errors.InputError, match=words):
    train_loop.train(config({key: value}), str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('harm', ['removed', 'edited'])
def test_a_run_without_its_config_does_not_go_on_with_another(
    whole, tmp_path, harm
):
  """What was trained is in the checkpoints, whatever lies beside them."""
  workdir, other = tmp_path / 'run', {'optimizer.learning_rate': 0.7}
  shutil.copytree(whole[0], workdir)
  path = workdir / 'config.json'
  if harm == 'removed':
    path.unlink()
  else:
    held = json.loads(path.read_text())
    held['optimizer']['learning_rate'] = 0.7
    path.write_text(json.dumps(held))
    for read in (
        rundir.read_config,
        lambda run: train_loop.train(config(), run),
    ):
      with pytest.raises(errors.InputError, match='changed after the check'):
        read(str(workdir))
  words = 'learning_rate is .* there and 0.7 here|changed after the check'
  with pytest.raises(errors.InputError, match=words):
    train_loop.train(config(other), str(workdir))
  if harm == 'removed':
    with pytest.raises(errors.InputError, match='trained it writes it anew'):
      rundir.read_config(workdir)
    train_loop.train(config(), str(workdir))
    written = json.dumps(config().to_dict(), indent=2) + '\n'
    assert path.read_text() == written


@pytest.mark.parametrize(
    'name', ['lr[0.1]', 'a*', 'a?', 'a\\b', 'a\udcff', 'gs:/x', 'x' * 250]
)
def test_a_place_that_checkpoints_cannot_be_read_from_is_refused(
    tmp_path, name
):
  """Orbax takes the path itself for a pattern, and reads nothing there."""
  path = tmp_path / name / '/'.join([name] * 16 * (len(name) > 200))
  with pytest.raises(errors.InputError, match='path.* cannot be read again'):
    train_loop.train(config(), str(path))
  assert not any(tmp_path.iterdir())


def test_data_that_a_task_cannot_learn_from(tmp_path):
  scenes = tiny_scenes.get_config().unlock()
  scenes.data = config().data
  words = "'detection' does not fit 'digits', .* no image_size, gt_boxes"
  with pytest.raises(errors.InputError, match=words):
    train_loop.train(scenes, str(tmp_path))


def test_averages_are_evaluated_in_place_of_the_newest_weights(whole, tmp_path):
  result = train_loop.train(config({'ema_decay': 0.0}), str(tmp_path))
  arrays = saved_arrays(tmp_path, 22)
  assert not any(name.startswith('ema') for name in arrays)
  assert result.metrics['loss'] != whole[1].metrics['loss']


@pytest.mark.slow  # Each of its parts has tests of its own.
@pytest.mark.usefixtures('quick_compiles')
def test_a_recipe_for_imagenet_trains_from_what_tfds_prepared(tmp_path):
  """LAMB, mixing, bfloat16, accumulation, and every image evaluated once."""
  rows = [dict(image=pictures.photo(i), label=7 * i) for i in range(18)]
  splits = {'train': rows, 'validation': rows[:10]}
  fake_tfds.write(tmp_path, 'imagenet2012', fake_tfds.labelled(1000), splits)
  shrunk = imagenet.get_config(model='resnet18', recipe='a3', aw_conv=True)
  tiny.shrink(shrunk, 32)
  with shrunk.unlocked():
    shrunk.data.update(dir=str(tmp_path), num_workers=0)
    shrunk.update(batch_size=16, accumulation_steps=2, log_every_steps=1)
    shrunk.model.dtype = 'bfloat16'
    shrunk.num_epochs, shrunk.optimizer.warmup_epochs = 8 * 16 / 18, 2.0
    shrunk.eval_every_epochs = shrunk.checkpoint_every_epochs = 1e3
  result = train_loop.train(shrunk, str(tmp_path / 'run'))
  assert result.step == 8 and result.metrics['num_examples'] == 10
  losses = logged(tmp_path / 'run', 'train/loss')
  assert len(losses) == 8 and np.isfinite(losses).all()
  assert not (tmp_path / 'run' / rundir.UNREADABLE).exists()
