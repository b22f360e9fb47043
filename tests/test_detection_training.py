"""Detectors under the training loop as users run it: devices, kills, results.

All on scenes of digits, a few steps of a narrow network.
"""

import json
import signal
import time

import commands
import numpy as np
import pytest
import tiny_scenes
import watched_run
from watched_run import logged

from awconv_jax.data import sources

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group('scenes'),  # They share runs.
    pytest.mark.usefixtures('quick_compiles_of_module'),
]
STEPS, IMAGES = 9, 19
PARTS = ('rpn_class', 'rpn_box', 'roi_class', 'roi_box')


@pytest.fixture(scope='module')
def eight(tmp_path_factory, quick_compiles_of_module):
  """An uninterrupted run on eight devices."""
  workdir = tmp_path_factory.mktemp('eight')
  return watched_run.train(tiny_scenes.get_config(), workdir, devices=8)


SCENES = 'train.py', f'--config={commands.ROOT}/tests/tiny_scenes.py'


def assert_same_losses(ours, theirs):
  for name in ('loss', *PARTS):
    want, got = (logged(run, f'train/{name}') for run in (ours, theirs))
    assert len(want) == STEPS
    np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=name)
  assert logged(theirs, 'eval/num_images') == [IMAGES]


def test_a_run_trains_and_counts_every_image_once(eight):
  assert eight.result.step == eight.result.total_steps == STEPS
  losses = np.array([logged(eight.workdir, f'train/{name}') for name in PARTS])
  assert losses.shape == (len(PARTS), STEPS)
  total = logged(eight.workdir, 'train/loss')
  np.testing.assert_allclose(losses.sum(0), total, rtol=1e-5)
  assert eight.result.metrics['num_images'] == IMAGES
  (evaluator,) = eight.evaluators
  split = tiny_scenes.get_config().data.eval_split
  source = sources.open_source('digit_scenes', None, split)
  ids = sorted(source[i]['image_id'] for i in range(IMAGES))
  assert [image['id'] for image in evaluator.dataset()['images']] == ids
  last = watched_run.saved_arrays(eight.workdir, STEPS)
  # Norms that train have statistics that move.
  statistics = [name for name in last if name.startswith('model_state/')]
  assert any((eight.first[name] != last[name]).any() for name in statistics)
  # Both canvases are compiled once.
  assert eight.step._cache_size() == eight.predict._cache_size() == 2
  classes = json.loads((eight.workdir / 'classes.json').read_text())
  assert classes == [*'0123456789']


def test_one_device_and_two_processes_of_four_train_as_eight(eight, tmp_path):
  one = watched_run.train(tiny_scenes.get_config(), tmp_path / '1', devices=1)
  assert_same_losses(eight.workdir, one.workdir)
  processes = commands.start_two(*SCENES, f'--workdir={tmp_path}/2')
  outs = [p.communicate(timeout=500) for p in processes]
  assert [p.returncode for p in processes] == [0, 0], outs
  assert_same_losses(eight.workdir, tmp_path / '2')


def test_a_kill_leaves_no_trace_in_the_result(eight, tmp_path, capsys):
  process = commands.start(*SCENES, f'--workdir={tmp_path}', devices=8)
  saved = tmp_path / 'checkpoints/4'
  # The next one begins when this one is whole, at the end of the run.
  while process.poll() is None and not saved.is_dir():
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  _, err = process.communicate()
  assert process.returncode == -signal.SIGKILL, err
  again = watched_run.train(tiny_scenes.get_config(), tmp_path, devices=8)
  out = capsys.readouterr().out
  assert 'resumed from the checkpoint of step 4' in out
  assert again.result.metrics == eight.result.metrics
  watched_run.assert_same_runs(eight.workdir, tmp_path, STEPS)
