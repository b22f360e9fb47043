"""The tools that look at a run of detection: a real one, and what misfits."""

import functools
import json
import re

import commands
import cv2
import fake_coco
import numpy as np
import pytest
import random_values
import trained

from awconv_jax import inference, models, weights
from awconv_jax.errors import InputError
from awconv_jax.tools import evaluate, predict
from awconv_jax.train import rundir, settings
from configs import coco

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """What a run leaves, and its data: 11 images of three categories."""
  root = tmp_path_factory.mktemp('detection')
  fake_coco.write(root / 'set', {'train': range(9), 'test': range(20, 31)})
  config = coco.get_config(model='resnet18', aw_conv=False, num_classes=3)
  with config.unlocked():
    config.data = fake_coco.config(f'coco_json:{root}/set')
    config.eval_batch_size = 8  # One image per device.
    model = config.model
    model.backbone.update(width=4, stage_sizes=(1, 1, 1, 1))
    model.pyramid.features = model.head.features = 8
    model.proposals.update(candidates=16, number=8)
    model.detections.number = 4
  variables = random_values.like(
      models.shapes_of(models.create_detector(**config.model.to_dict()))
  )
  trained.write_variables(root / 'run', variables, settings.complete(config))
  (root / 'run/classes.json').write_text('["thing 3", "thing 5", "thing 9"]')
  weights.save(root / 'weights.safetensors', variables)
  return root


@pytest.mark.slow
def test_a_run_a_file_of_weights_and_an_array_agree(made, tmp_path):
  config, run = rundir.read_config(made / 'run'), str(made / 'run')

  found = evaluate.evaluate(config, run)
  metrics = predict.run(config, run, str(tmp_path))
  results = json.loads((tmp_path / 'results.json').read_text())
  again = predict.run(
      config, str(made / 'weights.safetensors'), str(tmp_path), flip=True
  )
  photo = str(made / 'set/test/000000000020.jpg')
  predict.run(config, run, str(tmp_path), inputs=[photo])
  rows = json.loads((tmp_path / 'results.json').read_text())
  image = cv2.imread(photo)[..., ::-1]
  (one,) = inference.load(run).detect([image], batch_size=1)

  assert {r['image_id'] for r in results} <= set(range(20, 31)) and results
  assert {r['category_id'] for r in results} <= {3, 5, 9}
  metrics.pop('per_class')
  assert metrics.pop('num_images') == found['num_images'] == 11
  assert {k: found[k] for k in metrics} == metrics
  assert found['num_unreadable'] == found['num_unlabelled'] == 0
  assert again['num_images'] == 11 and len(rows) > 0
  boxes, scores, ids = (
      [r[key] for r in rows] for key in ('bbox', 'score', 'category_id')
  )
  sides = one.boxes - np.pad(one.boxes[:, :2], ((0, 0), (2, 0)))
  np.testing.assert_allclose(sides, boxes, atol=1e-2)
  np.testing.assert_allclose(one.scores, scores, atol=1e-4)
  assert [(3, 5, 9)[label] for label in one.labels] == ids


@pytest.mark.parametrize(
    'old, new, message',
    [
        ('ures": 8', 'ures": 16', 'not fit .*26 of another kind.*0.0.bias has'),
        ('"task"', '"tusk"', 'config of a run: config.task is missing'),
        ('"eval_split": "test"', '"eval_split": "a"', "unknown split 'a'"),
        ('"coco_json:', '"folder:', 'unknown config.data.canvas'),
        ('^', '?', 'config.json does not hold the config of a run: Expecting'),
        ('(?s).*', '3', 'config.json does not hold the config of a run: '),
    ],
)
def test_a_config_that_does_not_fit_the_run_is_one_line(
    made, tmp_path, old, new, message
):
  (tmp_path / 'checkpoints').symlink_to(made / 'run/checkpoints')
  text = (made / 'run/config.json').read_text()
  (tmp_path / 'config.json').write_text(re.sub(old, new, text))
  detect = functools.partial(predict.run, output=str(tmp_path / 'out'))
  for measure in (evaluate.evaluate, detect):
    with pytest.raises(InputError, match=message) as caught:
      measure(rundir.read_config(tmp_path), str(tmp_path))
    assert '\n' not in str(caught.value)


def test_commands_read_the_run_and_what_changes_its_config(made, tmp_path):
  run, out = f'--run={made}/run', f'--output={tmp_path}/out'
  for command, message in (
      (
          f'evaluate {run} --config.data.max_boxes=1',
          'boxes; raise config.data.max_boxes=1',
      ),
      ('evaluate', '--run=... is wanted'),
      ('predict', '--run=... is wanted'),
      (
          f'predict --run={tmp_path}/none {out}',
          "none' does not exist; which run is meant?",
      ),
      (f'predict {run} --output={made}/run/classes.json/o', 'Not a dir'),
  ):
    code, printed, err = commands.tool(*command.split())
    assert (code, printed, err.count('\n')) == (1, '', 1)
    assert err.startswith('error: ') and message in err
  assert not (tmp_path / 'out').exists()
