"""The losses of classification against float64 formulas written out here."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from awconv_jax import errors
from awconv_jax.ops import mixing
from awconv_jax.tasks import classification
from awconv_jax.train import partition, settings
from awconv_jax.train import step as train_step

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')

CLASSES, SIDE = 4, 3
MEAN, STD = (120.0, 90.0, 60.0), (60.0, 50.0, 70.0)
BOTH = dict(mixup=1.0, cutmix=1.0)


class Linear(nn.Module):
  """Logits that are linear in the pixels, so that gradients can be written."""

  num_classes: int = CLASSES

  @nn.compact
  def __call__(self, images, *, train):
    del train
    kernel_init = nn.initializers.normal(0.1)
    head = nn.Dense(CLASSES, kernel_init=kernel_init, name='head')
    return head(images.reshape(len(images), -1))


def create(**changes):
  return classification.Classification(Linear(), mean=MEAN, std=STD, **changes)


def batch(rows=8):
  rng = np.random.default_rng(0)
  return {
      'image': rng.integers(0, 256, (rows, SIDE, SIDE, 3)).astype(np.uint8),
      'label': rng.integers(0, CLASSES, rows).astype(np.int32),
      'mask': np.ones(rows, bool),
  }


@pytest.fixture(scope='module')
def variables():
  return jax.jit(create().init)(jax.random.key(0), batch())


def test_in_float64_nothing_is_narrower():
  config = tiny.get_config(attention='aa')
  wide = dict.fromkeys(('dtype', 'param_dtype'), 'float64')
  with jax.enable_x64(True), config.unlocked():
    # Attention at a coarser grid, and a norm over statistics.
    config.model.update(width=16, stage_sizes=(1, 1), aw_stages=(1, 2), **wide)
    config.task.update(mixup=0.2, cutmix=1.0)
    task = settings.create_task(settings.complete(config))
    rows = jax.eval_shape(
        lambda: batch() | {'image': jnp.zeros((8, 16, 16, 1))}
    )
    rng = jax.random.key(0)
    variables = jax.eval_shape(task.init, rng, rows)
    gradient = jax.grad(task.loss, has_aux=True)
    made = jax.make_jaxpr(gradient)(variables, rows, rng)
    predicted = jax.make_jaxpr(task.predict)(variables, rows)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
      np.dtype('float64')
  }
  for jaxpr in (made, predicted):
    assert 'f64[8,10]' in str(jaxpr)
    narrow = re.findall(r':(?:f32|bf16|f16)\[.*\n?.*', str(jaxpr))
    assert not [line for line in narrow if 'f32[]' not in line]


def softmax_loss(logits, targets):
  """Returns the loss of each row and its gradient by the logits, in float64."""
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  return -(targets * np.log(p)).sum(-1), p - targets


def bce_loss(logits, targets):
  p = 1 / (1 + np.exp(-logits))
  losses = targets * np.log(p) + (1 - targets) * np.log(1 - p)
  return -losses.mean(-1), (p - targets) / logits.shape[-1]


LOSSES = {'softmax': softmax_loss, 'bce': bce_loss}


def logits_of(variables, images):
  """Returns normalised pixels as rows, [B, H * W * C], and their logits."""
  pixels = (np.asarray(images, np.float64) - MEAN) / STD
  pixels = pixels.reshape(len(images), -1)
  head = variables['params']['head']
  return pixels, pixels @ np.float64(head['kernel']) + np.float64(head['bias'])


def targets_of(labels, smoothing=0.0):
  return np.eye(CLASSES)[labels] * (1 - smoothing) + smoothing / CLASSES


def mixed(rows, smoothing, rng, **options):
  """Returns images and targets, mixed with the rows from the other end."""
  options = dict(probability=1.0, switch_probability=0.5) | options
  mix = mixing.draw(jax.random.split(rng)[0], (SIDE, SIDE), **options)
  weights, share = np.asarray(mix.weights, float), float(mix.share)
  images = rows['image'].astype(float)
  targets = targets_of(rows['label'], smoothing)
  images = weights * images + (1 - weights) * images[::-1]
  return images, share * targets + (1 - share) * targets[::-1], weights


@pytest.mark.parametrize(
    'loss, threshold, mixes',
    [
        ('softmax', None, {}),
        ('bce', None, {}),
        ('softmax', None, BOTH),
        ('bce', None, BOTH),
        ('bce', 0.2, BOTH),
    ],
)
def test_loss_and_gradients(loss, threshold, mixes, variables):
  rows, options = batch(), dict(loss=loss, bce_threshold=threshold)
  task = create(label_smoothing=0.1, **options, **mixes)
  step = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
  kinds, sums = set(), set()
  for rng in map(jax.random.key, range(4 if mixes else 1)):
    images, targets = rows['image'], targets_of(rows['label'], 0.1)
    if mixes:
      images, targets, weights = mixed(rows, 0.1, rng, **mixes)
      kinds.add('cutmix' if set(weights.flat) <= {0, 1} else 'mixup')
    largest = targets == targets.max(-1, keepdims=True)
    if threshold is not None:
      targets = (targets > threshold).astype(float)
      sums.update(targets.sum(-1))
    (got, (metrics, _)), gradients = step(variables, rows, rng)
    pixels, logits = logits_of(variables, images)
    losses, by_logits = LOSSES[loss](logits, targets)
    np.testing.assert_allclose(got, losses.mean(), rtol=1e-5)
    by_logits = by_logits / len(losses)
    wanted = {'kernel': pixels.T @ by_logits, 'bias': by_logits.sum(0)}
    for name, want in wanted.items():
      value = gradients['params']['head'][name]
      np.testing.assert_allclose(value, want, 1e-4, 1e-6, err_msg=name)
    hits = largest[np.arange(len(logits)), logits.argmax(-1)]
    assert metrics['top1'] == pytest.approx(hits.mean())
  assert kinds == ({'mixup', 'cutmix'} if mixes else set())
  # Above the threshold are both classes of an even mix, and one of an uneven.
  assert sums == (set() if threshold is None else {1, 2})


def test_binary_cross_entropy_of_large_logits_is_finite():
  logits = jnp.array([[1e4, -1e4, 0.0]])
  targets = jnp.array([[0.0, 1.0, 0.5]])
  function = classification.binary_cross_entropy
  loss, back = jax.vjp(lambda x: function(x, targets), logits)
  np.testing.assert_allclose(loss, [(2e4 + np.log(2)) / 3], rtol=1e-6)
  (gradient,) = back(jnp.ones(1))
  np.testing.assert_allclose(gradient, [[1 / 3, -1 / 3, 0]], atol=1e-7)


def test_a_batch_that_is_never_mixed_has_the_plain_loss(variables):
  plain, never = (
      float(create(**options).loss(variables, batch(), jax.random.key(7))[0])
      for options in ({}, BOTH | dict(mix_probability=0.0))
  )
  assert never == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize('loss, threshold', [('softmax', None), ('bce', 0.6)])
def test_evaluation_has_plain_targets_of_right_classes(
    loss, threshold, variables
):
  rows = batch(5)
  labels = [[0, -1, -1], [1, 3, -1], [3, 1, 0], [2, 2, 0], [-1, -1, -1]]
  rows['label'], rows['mask'][4] = np.array(labels, np.int32), False
  # Nothing of what is done in training.
  task = create(loss=loss, bce_threshold=threshold, label_smoothing=0.1, **BOTH)
  outputs = jax.jit(task.predict)(variables, rows)
  targets = [[1, 0, 0, 0], [0, 1, 0, 1], [1, 1, 0, 1], [1, 0, 1, 0], [0] * 4]
  targets = targets / np.maximum(np.sum(targets, -1, keepdims=True), 1)
  _, logits = logits_of(variables, rows['image'])
  want, _ = LOSSES[loss](logits, targets)
  np.testing.assert_allclose(outputs['logits'], logits, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(outputs['loss'], want, rtol=1e-5)
  evaluator = task.evaluator()
  evaluator.update(jax.device_get(outputs))
  metrics = evaluator.compute()
  hits = [np.argmax(logits[n]) in rows['label'][n] for n in range(4)]
  assert metrics['num_examples'] == 4
  assert metrics['top1'] == np.mean(hits)
  assert metrics['loss'] == pytest.approx(want[:4].mean(), rel=1e-5)


def test_each_part_of_a_batch_is_mixed_by_itself():
  """Rows of one part meet no rows of another."""
  task, mesh, rows = create(mixup=1.0), partition.create_mesh(), batch(16)
  common = task, optax.sgd(1.0)
  shapes = jax.eval_shape(batch)
  state = train_step.create_state(
      *common, mesh, seed=0, batch_shapes=shapes, ema=False
  )
  options = dict(accumulation_steps=2, ema_decay=0.0)
  step = train_step.create_train_step(*common, lambda n: 1.0, mesh, **options)
  variables = {'params': jax.device_get(state.params)}
  losses, rng = [], jax.random.fold_in(jax.random.key(3), 0)
  for part in range(2):
    own = {name: array[part::2] for name, array in rows.items()}
    key = jax.random.fold_in(rng, part)
    images, targets, _ = mixed(own, 0.0, key, mixup=1.0, cutmix=0.0)
    _, logits = logits_of(variables, images)
    losses.append(softmax_loss(logits, targets)[0].mean())
  _, metrics = step(state, partition.shard_batch(mesh, rows), 3)
  np.testing.assert_allclose(metrics['loss'], np.mean(losses), rtol=1e-5)


def test_a_threshold_that_divides_nothing():
  smooth = dict(loss='bce', label_smoothing=0.1), '0.025 and below 0.92'
  for changes, words in (({}, "loss='bce', which is 'softmax'"), smooth):
    with pytest.raises(
        errors.InputError, match=f'bce_threshold=0.02 .*{words}'
    ):
      create(bce_threshold=0.02, **changes)
