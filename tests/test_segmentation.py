"""Segmentation: counts, upsampling, the network on a canvas, loss and tools."""

import functools
import json

import commands
import flax.linen as nn
import jax
import jax.numpy as jnp
import naive
import numpy as np
from PIL import Image
import pytest
import random_values
import tiny_masks
import trained
import watched_run

from awconv_jax import data, errors, inference, models, pretrained
from awconv_jax.data import described, sources
from awconv_jax.evaluators.confusion import Confusion
from awconv_jax.models.segmentation import semantic_fpn
from awconv_jax.ops.resample import upsample
from awconv_jax.tasks import segmentation
from awconv_jax.tools import evaluate, export, predict
from awconv_jax.train import loop, settings
from awconv_jax.train import step as train_step

IGNORE = 255


def counted(right, found, number):
  """Pixel by pixel: the confusion matrix."""
  matrix = np.zeros((number, number), int)
  for a, b in zip(right.flat, found.flat, strict=True):
    if a != IGNORE:
      matrix[a, b] += 1
  return matrix


def test_every_pixel_counts_once_but_ignored_ones_and_padding():
  rng = np.random.default_rng(0)
  # Class 3 is nowhere, but is predicted.
  right = rng.choice([0, 0, 0, 1, 2, IGNORE], (7, 5, 4)).astype(np.uint8)
  found = rng.integers(0, 4, right.shape).astype(np.uint8)
  mask = np.array([1, 1, 0, 1, 1, 1, 0], bool)
  matrix = counted(right[mask], found[mask], 4)
  both = np.diag(matrix)
  union = matrix.sum(0) + matrix.sum(1) - both
  of_class = matrix.sum(1)
  for cuts in ([], [1, 4], [3]):
    evaluator = Confusion(4)
    parts = (np.split(a, cuts) for a in (right, found, mask))
    for a, b, c in zip(*parts, strict=True):
      evaluator.update(dict(gt_classes=a, classes=b, mask=c))
    np.testing.assert_array_equal(evaluator.matrix, matrix)
    got = evaluator.compute()
    assert got['mIoU'] == pytest.approx((both / union)[:3].mean(), rel=1e-12)
    assert got['accuracy'] == both.sum() / matrix.sum()
    assert (got['num_pixels'], got['num_images']) == (matrix.sum(), 5)
    # What always says the class that most pixels are of.
    share = of_class.max() / of_class.sum()
    assert got['majority_accuracy'] == share
    assert got['majority_mIoU'] == pytest.approx(share / 3, rel=1e-12)
    assert [c['IoU'] for c in evaluator.per_class()][3] == -1
  lazy = Confusion(4)
  lazy.update(dict(gt_classes=right, classes=0 * found, mask=mask))
  measures = lazy.compute()
  assert measures['mIoU'] == pytest.approx(measures['majority_mIoU'])
  assert measures['accuracy'] == measures['majority_accuracy']
  with pytest.raises(errors.InputError, match='no pixel'):
    Confusion(4).compute()


def test_upsampling_is_bilinear_and_knows_the_edge_of_each_image():
  factor = 4
  rng = np.random.default_rng(1)
  x = rng.normal(size=(2, 5, 6, 3)).astype(np.float32)
  shape = (2, 5 * factor, 6 * factor, 3)
  want = jax.image.resize(x, shape, 'linear')
  np.testing.assert_allclose(upsample(jnp.asarray(x), factor), want, atol=1e-5)
  size = np.array([[3, 6], [5, 2]])
  got = upsample(jnp.asarray(x), factor, size)
  for n, (height, width) in enumerate(size):
    alone = x[n : n + 1, :height, :width]
    shape = (1, height * factor, width * factor, 3)
    np.testing.assert_allclose(
        got[n, : height * factor, : width * factor],
        jax.image.resize(alone, shape, 'linear')[0],
        atol=1e-5,
    )


@pytest.fixture(scope='module')
def network(quick_compiles_of_module):
  """A tiny config, its task, and random weights."""
  config = tiny_masks.get_config()
  with config.unlocked():
    config.model.backbone.update(aw_conv=False)
  task = settings.create_task(config)
  return config, task, random_values.like(models.shapes_of(task.model))


def batch_of(rng, sizes, canvas):
  """Returns a batch of noise on a canvas, also beyond the images."""
  shape = (len(sizes), *canvas)
  right = rng.integers(0, 11, shape).astype(np.uint8)
  for n, (height, width) in enumerate(sizes):
    right[n, height:], right[n, :, width:] = IGNORE, IGNORE
  right[:, :3] = IGNORE
  return dict(
      image=rng.integers(0, 256, (*shape, 3)).astype(np.uint8),
      image_size=np.int32(sizes),
      gt_classes=right,
  )


def test_a_padded_image_gives_what_it_gives_alone(network):
  _, task, variables = network
  batch = batch_of(np.random.default_rng(2), [(37, 50), (48, 64)], (48, 64))
  forward = jax.jit(task.forward)
  logits = forward(variables, batch)
  assert logits.shape == (2, 48, 64, 11) and logits.dtype == jnp.float32
  alone = forward(variables, {'image': batch['image'][:1, :37, :50]})
  assert np.std(alone) > 0.1
  np.testing.assert_allclose(logits[0, :37, :50], alone[0], atol=2e-4)


def doubled(x, axis):
  """Returns x of twice the length: linear, between centres of pixels."""
  last = x.shape[axis] - 1
  edge = [np.take(x, [end], axis) for end in (0, last)]
  before = np.concatenate([edge[0], np.delete(x, last, axis)], axis)
  after = np.concatenate([np.delete(x, 0, axis), edge[1]], axis)
  pairs = np.stack([(before + 3 * x) / 4, (3 * x + after) / 4], axis + 1)
  shape = list(x.shape)
  shape[axis] *= 2
  return pairs.reshape(shape)


def stage(x, conv, norm, groups):
  """Returns relu(group norm(3x3 convolution)) of [N, H, W, C], in float64."""
  x = naive.conv(x, np.float64(conv['kernel']), padding=((1, 1), (1, 1)))
  parts = x.reshape(*x.shape[:3], groups, -1)
  over = dict(axis=(1, 2, 4), keepdims=True)
  parts = (parts - parts.mean(**over)) / np.sqrt(parts.var(**over) + 1e-6)
  return np.maximum(parts.reshape(x.shape) * norm['scale'] + norm['bias'], 0)


def test_levels_are_added_as_in_the_paper():
  """Figure 3 of 1901.02446."""
  rng = np.random.default_rng(8)
  shapes = {'p2': (12, 16), 'p3': (6, 8), 'p4': (3, 4)}
  levels = {n: rng.normal(size=(2, *s, 5)) for n, s in shapes.items()}
  branch = semantic_fpn.Branch(6, 3, jnp.float32, jnp.float32)
  sizes = [jnp.array([s, s]) for s in shapes.values()]
  params = jax.eval_shape(branch.init, jax.random.key(0), levels, sizes)
  params = random_values.like(params)['params']
  want = 0
  for level, (name, x) in enumerate(levels.items()):
    for number in range(1, max(level, 1) + 1):
      names = (f'{name}_{kind}{number}' for kind in ('conv', 'norm'))
      x = stage(x, *(params[n] for n in names), groups=3)
      if level:
        x = doubled(doubled(x, 1), 2)
    want = want + x
  got = branch.apply({'params': params}, levels, sizes)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


class Logits(nn.Module):
  """A network whose logits are its parameters, whatever it sees."""

  num_classes: int = 11

  @nn.compact
  def __call__(self, images, image_size, train=False):
    shape = *images.shape[:3], self.num_classes
    return self.param('logits', nn.initializers.normal(3.0), shape)


def test_the_loss_is_the_mean_over_all_pixels_that_count():
  task = segmentation.Segmentation(Logits())
  batch = batch_of(np.random.default_rng(3), [(24, 10), (15, 32)], (24, 32))
  variables = task.model.init(jax.random.key(0), batch['image'], None)
  logits = np.float64(variables['params']['logits'])
  loss, (metrics, _) = task.loss(variables, batch, jax.random.key(0))
  counts = batch['gt_classes'] != IGNORE
  logits, right = logits[counts], batch['gt_classes'][counts]
  chosen = np.take_along_axis(logits, right[:, None].astype(int), 1)[:, 0]
  want = (np.log(np.exp(logits).sum(-1)) - chosen).mean()
  assert float(loss) == pytest.approx(want, rel=1e-5)
  hits = (logits.argmax(-1) == right).mean()
  assert float(metrics['accuracy']) == pytest.approx(hits, rel=1e-5)


def test_what_does_not_fit_is_one_line():
  model = models.create_segmenter(
      backbone=dict(name='resnet18', stem='cifar'), num_classes=2
  )
  with pytest.raises(errors.InputError, match="stem='imagenet'") as error:
    models.shapes_of(model)
  assert '\n' not in str(error.value)
  with pytest.raises(errors.InputError, match='model.groups=32'):
    models.create_segmenter(backbone='resnet18', features=40)
  deep = dict(name='resnet18', stochastic_depth=0.1)
  with pytest.raises(errors.InputError, match='needs model.norm_train'):
    models.create_segmenter(backbone=deep, norm_train=False)


@pytest.fixture(scope='module')
def run(network, tmp_path_factory):
  """What a run leaves: the config, weights and names."""
  config, _, variables = network
  workdir = tmp_path_factory.mktemp('run')
  trained.write_variables(workdir, variables, config)
  names = ['background', *map(str, range(10))]
  (workdir / 'classes.json').write_text(json.dumps(names))
  return config, str(workdir)


@pytest.mark.slow
def test_tools_look_at_a_run(run, tmp_path, capsys):
  config, workdir = run
  metrics = predict.run(config, workdir, str(tmp_path), max_images=2)
  per_class = metrics.pop('per_class')
  assert metrics['num_images'] == 5 and len(per_class) == 11
  assert 0 < metrics['majority_accuracy'] < 1
  found = evaluate.evaluate(config, workdir)
  assert {k: found[k] for k in metrics} == metrics
  assert found['num_unlabelled'] == found['num_unreadable'] == 0
  assert '| majority_mIoU ' in evaluate.table(found)
  assert 'IoU of background' in evaluate.table(dict(per_class=per_class))
  written = sorted((tmp_path / 'masks').iterdir())
  assert len(written) == len([*(tmp_path / 'pictures').iterdir()]) == 2
  rows = (tmp_path / 'predictions.jsonl').read_text().splitlines()
  shares = json.loads(rows[-1])['found']
  classes = np.asarray(Image.open(written[-1]))  # Of the last image, too.
  assert shares[0]['share'] == pytest.approx(
      (classes == shares[0]['label']).mean(), rel=1e-5
  )
  # An image of another size, as a user has it.
  image = np.random.default_rng(4).integers(0, 256, (75, 30, 3), np.uint8)
  model = inference.load(workdir)
  seen = model(image)
  assert seen.classes.shape == (75, 30)
  assert sum(seen.shares().values()) == pytest.approx(1)
  mirrored = model(image[:, ::-1], flip=True).classes[:, ::-1]
  assert (mirrored == model(image, flip=True).classes).mean() > 0.99
  levels = model.features(image)
  assert levels['p2'].shape == (-(-128 // 4), -(-51 // 4), 16)
  Image.fromarray(image).save(tmp_path / 'a.png')
  code, _, err = commands.tool(
      *('explain', f'--run={workdir}', f'--input={tmp_path}/a.png'),
      *('--panels=cam', f'--output={tmp_path}/x.png'),
  )
  assert code == 1 and err.count('\n') == 1 and '--panels=maps' in err


def counts_on(devices, network, batches):
  """Returns the evaluator of all batches on so many devices."""
  _, task, variables = network
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ('data',))
  evaluator = task.evaluator()
  with jax.set_mesh(mesh):
    predict = train_step.create_predict(task, mesh)
    for _, outputs in loop.predictions(predict, variables, batches, mesh):
      evaluator.update(outputs)
  return evaluator


@pytest.mark.slow
def test_one_device_and_eight_count_every_pixel_once(network):
  """Of landscapes and portraits, neither of which fill their batches."""
  config, _, _ = network
  options = config.data.to_dict() | dict(eval_split='test[:19]')
  create = functools.partial(data.create, options, train=False, seed=0)
  one, eight, three = (
      counts_on(devices, network, create(batch_size=size))
      for devices, size in ((1, 8), (8, 8), (1, 3))
  )
  source = sources.open_source('masks:digit_scenes', None, 'test[:19]')
  pixels = np.zeros(11, int)
  for i, size in enumerate(source.sizes):
    classes = source.mask_of(i, source[i], tuple(size)).classes
    pixels += np.bincount(classes.ravel(), minlength=11)
  for evaluator in (one, eight, three):
    assert evaluator.matrix.sum(1).tolist() == pixels.tolist()
    np.testing.assert_array_equal(evaluator.matrix, one.matrix)
    assert evaluator.compute() == one.compute()
  assert one.compute()['num_pixels'] == source.sizes.prod(1).sum()
  assert one.compute()['num_images'] == 19


@pytest.mark.slow
def test_one_device_and_eight_train_as_one(tmp_path, quick_compiles):
  runs = [
      watched_run.train(tiny_masks.get_config(), tmp_path / str(n), devices=n)
      for n in (1, 8)
  ]
  for name in ('train/loss', 'train/accuracy'):
    one, eight = (watched_run.logged(run.workdir, name) for run in runs)
    assert len(one) == 6
    np.testing.assert_allclose(one, eight, rtol=1e-4, err_msg=name)
  one, eight = (run.result.metrics for run in runs)
  assert one['num_pixels'] == eight['num_pixels']
  assert one['mIoU'] == pytest.approx(eight['mIoU'], abs=1e-3)
  # Another run takes its weights, but for the classes.
  shared = tmp_path / 'shared'
  pretrained.save_pretrained(str(runs[0].workdir), shared)
  assert 'image-segmentation' in (shared / 'README.md').read_text()
  image = np.random.default_rng(5).integers(0, 256, (60, 90, 3), np.uint8)
  found = [
      inference.load(str(place))(image).classes
      for place in (runs[0].workdir, shared)
  ]
  np.testing.assert_array_equal(*found)
  model = inference.load(str(shared))
  lines = export.export(model, tmp_path / 'exported')
  assert len(lines) == 3  # Landscapes, portraits, and what describes them.
  with pytest.raises(errors.InputError, match='of classifiers alone'):
    export.export(model, tmp_path / 'onnx', format='onnx')


def test_what_is_planned_for_has_the_shapes_of_the_data(network):
  config, _, _ = network
  name, split = config.data.name, config.data.eval_split
  assert described.num_examples(name, split) == 5
  blank = described.blank_batch(config.data, train=False, batch_size=8)
  real = data.create(config.data, train=False, batch_size=8, seed=0).blank
  shapes = [
      {k: (v.shape, v.dtype) for k, v in b.items()} for b in (blank, real)
  ]
  assert shapes[0] == shapes[1]
  assert shapes[0]['gt_classes'] == ((8, 96, 128), np.uint8)
