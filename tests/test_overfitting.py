"""The small detector as shipped learns a few images by heart.

What it then says of them and of others is what COCO's own tool says.
"""

import json

import oracle_coco
import pytest
import watched_run

from awconv_jax.data import sources
from awconv_jax.evaluators.coco import METRICS
from awconv_jax.tools import evaluate, predict
from awconv_jax.train import rundir
from configs import digit_scenes

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group('overfitting')]
SCENES = 8


@pytest.fixture(scope='module')
def learnt(tmp_path_factory):
  """The shipped network after another recipe for eight images."""
  config = digit_scenes.get_config()
  with config.unlocked():
    config.num_epochs = config.eval_every_epochs = 200.0
    config.checkpoint_every_epochs = 200.0
    config.batch_size = config.eval_batch_size = SCENES
    config.ema_decay = 0.0
    config.data.train_split = config.data.eval_split = f'train[:{SCENES}]'
    config.data.train_short_sides = (config.data.short_side,)
    config.data.train_empty = True
    config.optimizer.update(
        weight_decay=0.0, base_batch_size=SCENES, warmup_epochs=20.0
    )
  workdir = tmp_path_factory.mktemp('learnt')
  return watched_run.train(config, workdir, devices=1)


def test_eight_images_are_learnt_by_heart(learnt):
  assert learnt.result.step == 200
  assert learnt.result.metrics['num_images'] == SCENES
  assert learnt.result.metrics['AP50'] > 0.95, learnt.result.metrics


def test_what_is_written_is_worth_what_is_said_on_any_devices(learnt, tmp_path):
  # 11 more than were learnt, so that not all is found.
  split, images, said = 'train[:19]', 19, {}
  source = sources.open_source('digit_scenes', None, split)
  ids = sorted(source[i]['image_id'] for i in range(images))
  config = rundir.read_config(learnt.workdir)
  config = evaluate.choose(config, split=split, batch_size=8)
  for devices in (1, 8):
    folder = tmp_path / str(devices)
    with pytest.MonkeyPatch.context() as patch:
      watched_run.use_devices(patch, devices)
      run = str(learnt.workdir), str(folder)
      metrics = predict.run(config, *run, max_images=0)
    files = folder / 'ground_truth.json', folder / 'results.json'
    truth = json.loads(files[0].read_text())
    assert [image['id'] for image in truth['images']] == ids
    assert metrics['num_images'] == images and 0.3 < metrics['AP50'] < 1
    said[devices] = [metrics[name] for name in METRICS]
    # JSON keeps every digit.
    assert said[devices] == pytest.approx(oracle_coco.stats(*files), abs=1e-12)
  assert said[8] == pytest.approx(said[1], abs=1e-6)
