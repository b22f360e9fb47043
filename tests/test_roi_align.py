"""RoIAlign and its levels against loops in numpy, and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awconv_jax.ops import roi_align as roi_ops
from awconv_jax.ops.roi_align import assign_levels, roi_align

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')

STRIDES = (4, 8)
SIZES = (9, 12), (5, 6)  # Of a canvas of 36x48 pixels.
CHANNELS = 3
# Columns: x1, y1, x2, y2, level.
# Inside, on the border, beyond it, and thin.
REGIONS = [(7.3, 5.1, 30.2, 22.9, 0), (6.5, 9, 33, 30.5, 1)]
REGIONS += [(0, 0, 48, 36, 0), (0, 0, 48, 36, 1), (47, 35, 48, 36, 0)]
REGIONS += [(-20, -13, 20, 21, 0), (40, 30, 70, 52, 1), (-50, -50, -30, -20, 0)]
REGIONS += [(100, 3, 120, 30, 1), (3, 4, 46, 4.5, 0), (11, 2, 11.02, 2.03, 1)]
REGIONS = np.array(REGIONS)
ROIS, LEVELS = REGIONS[:, :4].astype(np.float32), REGIONS[:, 4].astype(np.int32)


def shares(low, high, size, output, sampling, *, adaptive, aligned):
  """Returns the share of each position of an axis in each bin, [P, size]."""
  if not aligned:
    high = max(high, low + 1)
  step = (high - low) / output
  n = min(int(np.ceil(step)), sampling) if adaptive else sampling
  bins, samples = np.arange(output)[:, None], (np.arange(n) + 0.5) / n
  y = low + step * (bins + samples)
  counts = (y >= -1) & (y <= size)
  distance = np.abs(y.clip(0, size - 1)[..., None] - np.arange(size))
  return (counts[..., None] * np.maximum(1 - distance, 0)).mean(1)


def naive(features, rois, levels, grad, **options):
  """Returns the averages and the gradients of the features, in float64."""
  out, grads = np.zeros(grad.shape), [np.zeros(f.shape) for f in features]
  for k, (roi, level) in enumerate(zip(rois, levels, strict=True)):
    height, width, _ = features[level].shape
    half = 0.5 if options['aligned'] else 0
    x1, y1, x2, y2 = np.float64(roi) / STRIDES[level] - half
    rows = shares(y1, y2, height, **options)
    columns = shares(x1, x2, width, **options)
    out[k] = np.einsum('pi,qj,ijc->pqc', rows, columns, features[level])
    grads[level] += np.einsum('pi,qj,pqc->ijc', rows, columns, grad[k])
  return out, grads


@functools.cache
def compiled(**options):
  """Returns averages and gradients, for a batch of images."""
  options = dict(valid_sizes=[None] * 2, strides=STRIDES) | options
  pool = jax.vmap(functools.partial(roi_align, **options))

  def run(features, rois, levels, grad):
    out, pullback = jax.vjp(lambda f, r: pool(f, r, levels), features, rois)
    return out, *pullback(grad)

  return jax.jit(run)


def maps(*batch, seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=(*batch, *s, CHANNELS)).astype(dtype) for s in SIZES]


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('adaptive', [True, False])
def test_values_and_gradients(adaptive, aligned):
  options = dict(sampling=2, adaptive=adaptive, aligned=aligned, output=3)
  # Of the second image they are in another order.
  rois, levels = (np.stack([a, a[::-1]]) for a in (ROIS, LEVELS))
  features = maps(2)
  grad = np.random.default_rng(1).normal(size=(*levels.shape, 3, 3, CHANNELS))
  grad = grad.astype(np.float32)
  out, grads, of_rois = compiled(**options)(features, rois, levels, grad)
  assert out.dtype == jnp.float32
  for n in range(2):
    image = [f[n] for f in features]
    want, wants = naive(image, rois[n], levels[n], grad[n], **options)
    np.testing.assert_allclose(out[n], want, atol=1e-5)
    for g, w in zip(grads, wants, strict=True):
      np.testing.assert_allclose(g[n], w, atol=1e-5)
  assert not np.any(of_rois)


@pytest.mark.parametrize('axis', [0, 1])
def test_which_samples_count_and_for_what(axis):
  """One sample, at a position of 9 pixels of the values 10 to 18."""
  below, above = np.nextafter(np.float32([-1, 9]), np.float32([-2, 10]))
  wanted = {below: 0, -1: 10, -0.5: 10, 0.25: 10.25, 7.5: 17.5}
  wanted |= {8: 18, 8.5: 18, 9: 18, above: 0}
  feature = np.broadcast_to(10 + np.arange(9.0)[:, None], (9, 6))
  rois = np.float32([(2, p - 0.5, 3, p + 0.5) for p in wanted])
  if axis:
    feature, rois = feature.T, rois[:, [1, 0, 3, 2]]
  options = dict(strides=(1,), output=1, sampling=1, aligned=False)
  features = [jnp.float32(feature)[..., None]]
  out = roi_align(features, rois, np.zeros(9, int), [None], **options)
  assert out.ravel().tolist() == [*wanted.values()]


NAN, INF = np.nan, np.inf
NOTHING = [
    # Padding, no width, no height, and the corners exchanged.
    *[(0, 0, 0, 0, 0), (8, 4, 8, 20, 0), (8, 4, 30, 4, 1), (30, 20, 8, 4, 0)],
    *[(NAN, 4, 30, 20, 0), (NAN, NAN, NAN, NAN, 1)],
    *[(-INF, -INF, INF, INF, 0), (8, 4, INF, 20, 1)],
    *[(8, 4, 30, 20, -1), (8, 4, 30, 20, 2)],  # The level.
]


@pytest.mark.parametrize('adaptive, aligned', [(True, True), (False, False)])
def test_what_is_no_region_gives_zeros_and_moves_nothing(adaptive, aligned):
  rows = np.array([*NOTHING, (8, 4, 30, 20, 1)], np.float32)
  rois, levels = rows[None, :, :4], rows[None, :, 4].astype(np.int32)
  features = [f + 5 for f in maps(1)]
  grad = np.ones((1, len(rows), 3, 3, CHANNELS), np.float32)
  run = compiled(output=3, adaptive=adaptive, aligned=aligned)
  out, grads, of_rois = run(features, rois, levels, grad)
  assert not np.any(out[0, :-1]) and np.all(out[0, -1] > 1)
  assert not np.any(of_rois)
  # Nine bins of the weight 1 on level 1, and none of the others.
  assert not np.any(grads[0])
  np.testing.assert_allclose(np.sum(grads[1], (0, 1, 2)), 9, rtol=1e-5)


def test_a_padded_map_is_read_as_the_image_alone():
  alone = maps()
  padding = [((0, 3), (0, 2), (0, 0)), ((0, 0), (0, 4), (0, 0))]
  padded = [
      np.pad(alone[i], padding[i], constant_values=np.nan) for i in range(2)
  ]

  @jax.jit
  def run(features, sizes):
    pool = functools.partial(roi_align, strides=STRIDES, output=3)
    out, back = jax.vjp(lambda f: pool(f, ROIS, LEVELS, sizes), features)
    return out, *back(jnp.ones_like(out))

  want, wants = run(alone, [None] * 2)
  # A size beyond the map is the map's.
  sizes = [np.array(SIZES[0]), np.array([90, SIZES[1][1]])]
  got, grads = run(padded, sizes)
  np.testing.assert_array_equal(got, want)
  for i in range(2):
    np.testing.assert_array_equal(grads[i], np.pad(wants[i], padding[i]))


def test_nothing_is_read_beside_the_map():
  """Where it would be is not defined, and the weight alone no protection."""
  far = [(1e12, 1e12, 3e12, 3e12, 1), (-1e12, 4, 1e12, 20, 0)]
  rows = np.concatenate([[*NOTHING, *far], REGIONS])
  sizes = SIZES, [width for _, width in SIZES], STRIDES
  rois, levels = jnp.array(rows[:, :4]), jnp.array(rows[:, 4], int)
  grid = roi_ops._create_grid(rois, levels, *sizes, 3, 2, False, True)
  pixels = np.prod(SIZES, 1)[np.array(grid.level), None, None]
  taps = jax.vmap(lambda number: roi_ops._tap(grid, number, 3, 2))
  place, weight = jax.jit(taps)(jnp.arange(16))
  assert np.all(place >= 0) and np.all(place < pixels)
  assert np.all(weight >= 0) and np.all(weight <= 0.25)


def test_half_precision_is_summed_in_single():
  """A pixel gets 1 from each of 400 samples; bfloat16 would stop at 256."""
  rois = np.tile(np.float32([5.998, 5.998, 6.002, 6.002]), (1, 400, 1))
  levels, features = np.zeros((1, 400), np.int32), maps(1)
  features = [jnp.array(f, jnp.bfloat16) for f in features]
  grad = jnp.ones((1, 400, 1, 1, CHANNELS), jnp.bfloat16)
  options = dict(output=1, sampling=20)
  out, grads, _ = compiled(**options)(features, rois, levels, grad)
  assert out.dtype == grads[0].dtype == grads[1].dtype == jnp.bfloat16
  assert float(grads[0][0, 1, 1, 0]) == 400
  # What is read is rounded once: as single precision is.
  pool = functools.partial(roi_align, strides=STRIDES, output=2)
  out, want = (
      jax.jit(pool)(
          [f[0].astype(d) for f in features], ROIS, LEVELS, [None] * 2
      )
      for d in ('bfloat16', 'float32')
  )
  np.testing.assert_array_equal(out, want.astype(jnp.bfloat16))


@pytest.mark.parametrize('rule', ['mmdet', 'torchvision'])
def test_the_levels_by_hand_and_by_logarithm(rule):
  assign = functools.partial(assign_levels, rule=rule)
  scales = [0, 55, 56, 111.9, 112, 223.9, 224, 447.9, 448, 3000]
  squares = np.float32([[10, 20, 10 + s, 20 + s] for s in scales])
  levels = assign(squares, 4)
  assert levels.dtype == jnp.int32
  assert levels.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
  assert assign(squares, 2, finest=112).tolist() == [0] * 6 + [1] * 4
  # 28 x 448 is as large as 112 x 112; the others have no area.
  odd = [(5, 5, 33, 453), (900, 900, 2, 2), (9, 900, 2, 2), (0, 0, 500, NAN)]
  assert assign(np.float32(odd), 4).tolist() == [1, 0, 0, 0]
  rng = np.random.default_rng(0)
  corner, sides = rng.uniform(0, 500, (2, 4000, 2)).astype(np.float32)
  rois = np.concatenate([corner, corner + sides], 1)
  scale = np.sqrt(np.prod(rois[:, 2:].astype(float) - rois[:, :2], 1))
  want = np.floor(np.log2(scale / 56 + 1e-6)).clip(0, 3)
  if rule == 'torchvision':
    want = np.floor(4 + np.log2(scale / 224) + 1e-6).clip(2, 5) - 2
  np.testing.assert_array_equal(assign(rois, 4), want)


def test_the_slack_of_both_rules():
  # Below level 1 by these shares of its least size. 1e-6 of `finest` is half of
  # that there; 1e-6 of an octave is 6.9e-7.
  finest = 2.0**20
  scales = [2 * finest * (1 - d) for d in (0, 2.4e-7, 6e-7, 9e-7)]
  rois = np.float32([[0, 0, s, s] for s in scales])
  for rule, want in (('mmdet', [1, 1, 0, 0]), ('torchvision', [1, 1, 1, 0])):
    assert assign_levels(rois, 2, finest=finest, rule=rule).tolist() == want


def test_memory_at_full_size():
  """800x1344 pixels, 512 regions, 256 channels: 112 MiB with the result."""
  strides = (4, 8, 16, 32)
  of = lambda *shape: jax.ShapeDtypeStruct(shape, 'float32')  # noqa: E731
  features = [of(800 // s, 1344 // s, 256) for s in strides]
  rois, grad = of(512, 4), of(512, 7, 7, 256)
  levels = jax.ShapeDtypeStruct((512,), 'int32')
  pool = functools.partial(roi_align, valid_sizes=[None] * 4, strides=strides)

  def backward(features, rois, levels, grad):
    return jax.vjp(lambda f: pool(f, rois, levels), features)[1](grad)

  for function, arrays in ((pool, ()), (backward, (grad,))):
    inputs = features, rois, levels, *arrays
    compiled = jax.jit(function).lower(*inputs).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 32 * 2**20


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(features=maps(2)), 'want maps .H, W, C. of one image'),
        (dict(features=[np.zeros((9, 9, 3)), np.zeros((5, 5, 4))]), 'not fit'),
        (dict(strides=(4,)), r'strides \(4,\)'),
        (dict(levels=np.zeros(4, int)), r'levels \(4,\) do not fit'),
        (dict(rois=np.zeros((5, 4), np.float16)), 'too coarse for pixels'),
        (dict(valid_sizes=[np.ones((1, 2), int)] * 2), r'valid_size \(1, 2\)'),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
  good = dict(features=maps(), rois=np.zeros((5, 4)), levels=np.zeros(5, int))
  good |= dict(valid_sizes=[None] * 2, strides=STRIDES)
  with pytest.raises(ValueError, match=message):
    roi_align(**good | arguments)
  with pytest.raises(ValueError, match="unknown rule 'detect'.*torchvision"):
    assign_levels(good['rois'], 4, rule='detect')
