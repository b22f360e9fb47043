"""The losses of classification against float64 formulas written out here."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from awconv_jax import errors
from awconv_jax.ops import mixing
from awconv_jax.tasks import classification
from awconv_jax.train import partition
from awconv_jax.train import step as train_step

CLASSES, SIDE, ROWS = 4, 3, 8
MEAN, STD = (120.0, 90.0, 60.0), (60.0, 50.0, 70.0)


class Linear(nn.Module):
  """Logits that are linear in the pixels, so that gradients can be written."""

  @nn.compact
  def __call__(self, images, *, train):
    del train
    kernel_init = nn.initializers.normal(0.1)
    head = nn.Dense(CLASSES, kernel_init=kernel_init, name='head')
    return head(images.reshape(len(images), -1))


def create(**changes):
  model = dict(name='resnet18', num_classes=CLASSES)
  task = classification.Classification(model, mean=MEAN, std=STD, **changes)
  task.model = Linear()
  return task


def batch(rows=ROWS, seed=0):
  rng = np.random.default_rng(seed)
  return {
      'image': rng.integers(0, 256, (rows, SIDE, SIDE, 3)).astype(np.uint8),
      'label': rng.integers(0, CLASSES, rows).astype(np.int32),
      'mask': np.ones(rows, bool),
  }


def variables():
  return jax.jit(create().init)(jax.random.key(0), batch())


# --- float64 -----------------------------------------------------------------


def softmax_loss(logits, targets):
  """Returns the loss of each row and its gradient by the logits."""
  exp = np.exp(logits - logits.max(-1, keepdims=True))
  p = exp / exp.sum(-1, keepdims=True)
  return -(targets * np.log(p)).sum(-1), p - targets


def bce_loss(logits, targets):
  p = 1 / (1 + np.exp(-logits))
  losses = targets * np.log(p) + (1 - targets) * np.log(1 - p)
  return -losses.mean(-1), (p - targets) / logits.shape[-1]


LOSSES = {'softmax': softmax_loss, 'bce': bce_loss}


def normalized(images):
  """Returns the normalised pixels as rows, [B, H * W * C]."""
  images = (np.asarray(images, np.float64) - MEAN) / STD
  return images.reshape(len(images), -1)


def logits_of(params, pixels):
  head = params['params']['head'] if 'params' in params else params['head']
  kernel, bias = (np.asarray(head[k], np.float64) for k in ('kernel', 'bias'))
  return pixels @ kernel + bias


def targets_of(labels, smoothing=0.0):
  return np.eye(CLASSES)[labels] * (1 - smoothing) + smoothing / CLASSES


def mixed(images, targets, weights, share):
  """Returns the mix with the rows from the other end."""
  images = weights * images + (1 - weights) * images[::-1]
  return images, share * targets + (1 - share) * targets[::-1]


def loss_and_gradients(loss, pixels, targets, params):
  losses, by_logits = LOSSES[loss](logits_of(params, pixels), targets)
  by_logits = by_logits / len(losses)
  gradients = {'kernel': pixels.T @ by_logits, 'bias': by_logits.sum(0)}
  return losses.mean(), gradients


# --- losses ------------------------------------------------------------------


def runner(task):
  """Returns a function: rows, seed -> loss, gradients of the head, metrics."""

  @jax.jit
  def step(params, rows, rng):
    grad = jax.value_and_grad(task.loss, has_aux=True)
    (loss, (metrics, _)), gradients = grad(params, rows, rng)
    return loss, gradients['params']['head'], metrics

  def run(rows, seed=7):
    return jax.device_get(step(variables(), rows, jax.random.key(seed)))

  return run


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('loss', LOSSES)
def test_loss_and_gradients(loss, smoothing):
  rows = batch()
  task = create(loss=loss, label_smoothing=smoothing)
  got, gradients, metrics = runner(task)(rows)
  params = variables()
  pixels = normalized(rows['image'])
  want, want_gradients = loss_and_gradients(
      loss, pixels, targets_of(rows['label'], smoothing), params
  )
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for name, value in want_gradients.items():
    np.testing.assert_allclose(
        gradients[name], value, rtol=1e-4, atol=1e-6, err_msg=name
    )
  hits = logits_of(params, pixels).argmax(-1) == rows['label']
  assert 0 < hits.mean() < 1
  assert metrics['top1'] == pytest.approx(hits.mean())


@pytest.mark.parametrize(
    'loss, threshold', [('softmax', None), ('bce', None), ('bce', 0.2)]
)
def test_loss_and_gradients_of_a_mixed_batch(loss, threshold):
  rows, smoothing = batch(), 0.1
  options = dict(mixup=1.0, cutmix=1.0)
  task = create(
      loss=loss,
      label_smoothing=smoothing,
      bce_threshold=threshold,
      **options,
  )
  run, params = runner(task), variables()
  kinds, sums = set(), set()
  for seed in range(6):
    got, gradients, metrics = run(rows, seed)
    rng = jax.random.split(jax.random.key(seed))[0]
    mix = mixing.draw(
        rng, (SIDE, SIDE), **options, probability=1.0, switch_probability=0.5
    )
    weights, share = np.asarray(mix.weights, float), float(mix.share)
    kinds.add('cutmix' if set(weights.flat) <= {0, 1} else 'mixup')
    images, targets = mixed(
        rows['image'].astype(float),
        targets_of(rows['label'], smoothing),
        weights,
        share,
    )
    largest = targets == targets.max(-1, keepdims=True)
    if threshold is not None:
      targets = (targets > threshold).astype(float)
      sums.update(targets.sum(-1))
    pixels = normalized(images)
    want, want_gradients = loss_and_gradients(loss, pixels, targets, params)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for name, value in want_gradients.items():
      np.testing.assert_allclose(
          gradients[name], value, rtol=1e-4, atol=1e-6, err_msg=name
      )
    chosen = logits_of(params, pixels).argmax(-1)
    hits = largest[np.arange(ROWS), chosen]
    assert metrics['top1'] == pytest.approx(hits.mean())
  assert kinds == {'mixup', 'cutmix'}
  # Above the threshold are both classes of an even mix, and one of an uneven.
  assert sums == (set() if threshold is None else {1, 2})


def test_binary_cross_entropy_of_large_logits_is_finite():
  logits = jnp.array([[1e4, -1e4, 0.0]])
  targets = jnp.array([[0.0, 1.0, 0.5]])
  loss = classification.binary_cross_entropy(logits, targets)
  np.testing.assert_allclose(loss, [(2e4 + np.log(2)) / 3], rtol=1e-6)
  gradient = jax.grad(
      lambda x: classification.binary_cross_entropy(x, targets).sum()
  )(logits)
  np.testing.assert_allclose(gradient, [[1 / 3, -1 / 3, 0]], atol=1e-7)


def test_a_batch_that_is_never_mixed_has_the_plain_loss():
  rows = batch()
  both = dict(mixup=1.0, cutmix=1.0)
  plain, never, always = (
      float(runner(create(**options))(rows)[0])
      for options in ({}, both | dict(mix_probability=0.0), both)
  )
  assert never == pytest.approx(plain, rel=1e-6)
  assert always != pytest.approx(plain, rel=1e-3)


# --- evaluation --------------------------------------------------------------


@pytest.mark.parametrize('loss', LOSSES)
def test_evaluation_has_the_loss_of_the_plain_targets(loss):
  rows, params = batch(), variables()
  task = create(loss=loss, label_smoothing=0.1, mixup=1.0, cutmix=1.0)
  outputs = jax.jit(task.predict)(params, rows)
  logits = logits_of(params, normalized(rows['image']))
  np.testing.assert_allclose(outputs['logits'], logits, rtol=1e-4, atol=1e-5)
  want, _ = LOSSES[loss](logits, targets_of(rows['label']))
  np.testing.assert_allclose(outputs['loss'], want, rtol=1e-5)


@pytest.mark.parametrize(
    'loss, threshold', [('softmax', None), ('bce', None), ('bce', 0.6)]
)
def test_several_right_classes_share_the_target(loss, threshold):
  rows, params = batch(5), variables()
  rows['label'] = np.array(
      [[0, -1, -1], [1, 3, -1], [3, 1, 0], [2, 2, 0], [-1, -1, -1]], np.int32
  )
  rows['mask'][4] = False
  task = create(loss=loss, bce_threshold=threshold)
  outputs = jax.jit(task.predict)(params, rows)
  targets = np.array(
      [[1, 0, 0, 0], [0, 1, 0, 1], [1, 1, 0, 1], [1, 0, 1, 0], [0] * 4]
  )
  targets = targets / np.maximum(targets.sum(-1, keepdims=True), 1)
  logits = logits_of(params, normalized(rows['image']))
  want, _ = LOSSES[loss](logits, targets)
  np.testing.assert_allclose(outputs['loss'], want, rtol=1e-5)
  np.testing.assert_array_equal(outputs['label'], rows['label'])

  evaluator = task.evaluator()
  evaluator.update(jax.device_get(outputs))
  metrics = evaluator.compute()
  hits = [np.argmax(logits[n]) in rows['label'][n] for n in range(4)]
  assert metrics['num_examples'] == 4
  assert metrics['top1'] == np.mean(hits)
  assert metrics['loss'] == pytest.approx(want[:4].mean(), rel=1e-5)


# --- a whole step ------------------------------------------------------------


def test_each_part_of_a_batch_is_mixed_by_itself():
  """Rows of one part meet no rows of another."""
  task, mesh = create(mixup=1.0), partition.create_mesh()
  optimizer = optax.sgd(1.0)
  state = train_step.create_state(
      task,
      optimizer,
      mesh,
      seed=0,
      batch_shapes=jax.eval_shape(batch),
      ema=False,
  )
  step = train_step.create_train_step(
      task,
      optimizer,
      lambda step: 1.0,
      mesh,
      seed=3,
      accumulation_steps=2,
      ema_decay=0.0,
  )
  head = jax.device_get(state.params['head'])
  rows = batch(16)
  losses = []
  rng = jax.random.fold_in(jax.random.key(3), 0)
  for part in range(2):
    mix = mixing.draw(
        jax.random.split(jax.random.fold_in(rng, part))[0],
        (SIDE, SIDE),
        mixup=1.0,
        cutmix=0.0,
        probability=1.0,
        switch_probability=0.5,
    )
    images, targets = mixed(
        rows['image'][part::2].astype(float),
        targets_of(rows['label'][part::2]),
        np.asarray(mix.weights, float),
        float(mix.share),
    )
    losses.append(
        loss_and_gradients(
            'softmax', normalized(images), targets, {'head': head}
        )[0]
    )
  _, metrics = step(state, partition.shard_batch(mesh, rows))
  np.testing.assert_allclose(metrics['loss'], np.mean(losses), rtol=1e-5)


# --- what cannot be used -----------------------------------------------------


@pytest.mark.parametrize(
    'changes, words',
    [
        ({}, "bce_threshold=0.02 .*loss='bce', which is 'softmax'"),
        (
            {'loss': 'bce', 'label_smoothing': 0.1},
            'bce_threshold=0.02 .*at least 0.025 and below 0.925',
        ),
    ],
)
def test_a_threshold_that_divides_nothing(changes, words):
  with pytest.raises(errors.InputError, match=words):
    create(bce_threshold=0.02, **changes)
