"""Faster R-CNN: counts, torchvision's numbers, and what must not matter."""

from collections.abc import Mapping
import functools
import json
import math
from typing import Annotated

from flax import traverse_util
import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest
import random_values
import torchvision_case

from awconv_jax import config, errors, macs, models
from awconv_jax.models.detection import presets
from awconv_jax.models.detection.presets import PRESETS
from awconv_jax.options import Named
from awconv_jax.train import optim, partition, settings
from awconv_jax.weights import names, state_dict
from configs import coco

TINY = dict(
    name='resnet18', width=4, stage_sizes=(1, 1, 1, 1), zero_init_residual=False
)
SMALL = dict(
    num_classes=3,
    pyramid=dict(features=8),
    head=dict(features=16),
    anchors=dict(scale=4.0),
    proposals=dict(train_candidates=20, candidates=20, train_number=30),
    detections=dict(number=12),
    # Every candidate is sampled: what is random depends on their number.
    anchor_sampler=dict(number=8000, fraction=0.5),
    roi_sampler=dict(number=80, fraction=0.5),
)

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


def of_shapes(*shapes):
  return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


@pytest.mark.parametrize(
    'backbone, body, gmacs, in_torchvision',
    [
        ('resnet50', 23_508_032, 206.33, 41_755_286),
        pytest.param(
            *('resnet101', 42_500_160, 282.09, 60_695_190),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_parameters_and_multiply_adds_are_the_published_ones(
    backbone, body, gmacs, in_torchvision
):
  model = models.create_detector(backbone=backbone)
  shapes = models.shapes_of(model)
  assert {
      module: sum(leaf.size for leaf in jax.tree.leaves(tree))
      for module, tree in shapes['params'].items()
  } == {
      'backbone': body,
      'fpn': 3_344_384,
      'rpn': 593_935,
      'box_head': 13_895_680,
      'box_predictor': 411_025,
  }
  arrays = of_shapes((1, 800, 1280, 3), (1, 2), (1, 1000, 4))
  counted = macs.count(model.apply, shapes, *arrays)
  assert round(sum(counted.values()) / 1e9, 2) == gmacs
  # torchvision's norms are constants, and not counted there.
  model = models.create_detector(
      backbone=backbone, preset='torchvision', num_classes=90
  )
  leaves = traverse_util.flatten_dict(models.shapes_of(model)['params'])
  counted = [x.size for path, x in leaves.items() if 'norm' not in path[-2]]
  assert sum(counted) == in_torchvision


def truth(rows, seed=0):
  """Returns boxes, labels and valid of six rows, most of them padding."""
  rng, shape = np.random.default_rng(seed), (len(rows), 6)
  boxes = np.sort(rng.uniform(0, 60, (*shape, 2, 2)), axis=2)
  boxes = np.float32(boxes.reshape(*shape, 4))
  boxes[:, 4] = 0
  labels = rng.integers(0, 3, shape).astype(np.int32)
  valid = np.zeros(shape, bool)
  for n, objects in enumerate(rows):
    for place, (box, label) in zip((0, 1, 2, 5), objects, strict=False):
      boxes[n, place], labels[n, place], valid[n, place] = box, label, True
  return boxes, labels, valid


def test_names_shapes_detections_and_losses_are_torchvisions():
  model = models.create_detector(
      backbone=dict(name='resnet18', stage_sizes=(1, 1, 1, 1)),
      preset='torchvision',
      num_classes=torchvision_case.CLASSES,
      pyramid=dict(features=torchvision_case.PYRAMID),
      head=dict(features=torchvision_case.HEAD),
      proposals=torchvision_case.PROPOSALS,
      detections=dict(number=torchvision_case.DETECTIONS),
      anchor_sampler=dict(number=10_000, fraction=0.5),
      roi_sampler=dict(number=200, fraction=0.5),
  )
  want, ours = np.load(torchvision_case.PATH), models.shapes_of(model)
  shapes = json.loads(str(want['shapes']))
  assert {n: list(e.shape) for n, e in names.table(ours).items()} == shapes
  arrays = {n: torchvision_case.draw(n, tuple(s)) for n, s in shapes.items()}
  variables = state_dict.from_state_dict(arrays, ours)
  batch = torchvision_case.images(), np.float32(torchvision_case.SIZES)
  got = jax.jit(functools.partial(model.apply, method='detect'))(
      variables, *batch
  )
  assert got['valid'].all()
  same = functools.partial(np.testing.assert_allclose, rtol=1e-4)
  for n in range(2):
    np.testing.assert_array_equal(got['labels'][n] + 1, want[f'labels{n}'])
    same(got['scores'][n], want[f'scores{n}'], atol=1e-5)
    same(got['boxes'][n], want[f'boxes{n}'], atol=1e-3)
  losses = jax.jit(functools.partial(model.apply, method='losses'))
  # Rows of ground truth that are padding change nothing.
  for seed in range(2):
    rows = truth(torchvision_case.TRUTH, seed=seed)
    got = losses(variables, *batch, *rows, jax.random.key(0))
    for name in torchvision_case.LOSSES:
      same(got[name], want[name], err_msg=name)
  # Without any object the losses are finite.
  got = losses(variables, *batch, *truth([[], []]), jax.random.key(0))
  assert got['rpn_box'] == got['roi_box'] == 0
  assert got['rpn_class'] > 0 and got['roi_class'] > 0


def test_former_names_of_torchvision_are_renewed():
  renewed = {
      'backbone.fpn.inner_blocks.3.weight': 'inner_blocks.3.0.weight',
      'backbone.fpn.layer_blocks.0.bias': 'layer_blocks.0.0.bias',
      'rpn.head.conv.weight': 'head.conv.0.0.weight',
      'backbone.body.conv1.weight': 'body.conv1.weight',
      'rpn.head.conv.0.0.bias': 'head.conv.0.0.bias',
  }
  told = []
  got = names.renew({name: name for name in renewed}, told.append)
  assert all(new.endswith(renewed.pop(former)) for new, former in got.items())
  assert not renewed
  assert told == ['took the present names for 3 former ones']


def small(backbone=(), **options):
  backbone = TINY | dict(backbone)
  return models.create_detector(backbone=backbone, **SMALL | options)


def random_variables(model):
  variables = random_values.like(models.shapes_of(model))
  # Boxes stay near their anchors, and classes differ.
  for stage in ('rpn', 'box_predictor'):
    variables['params'][stage]['bbox_pred']['kernel'] *= 0.3
  variables['params']['box_predictor']['cls_score']['kernel'] *= 4
  return variables


OBJECTS = [
    [((5, 6, 40, 30), 0), ((22, 10, 58, 44), 2)],
    [((8, 3, 30, 40), 1), ((1, 1, 17, 12), 0), ((30, 20, 60, 60), 2)],
]
SIZES = np.array([[50, 61], [64, 64]], np.float32)


def on_canvas(height, width, fill=0.0):
  """The same two images on a canvas, the first one padded anyway."""
  images = np.full((2, height, width, 3), fill, np.float32)
  rng = np.random.default_rng(7)
  for n, (h, w) in enumerate(SIZES.astype(int)):
    images[n, :h, :w] = rng.normal(size=(h, w, 3))
  return images


@pytest.fixture(scope='module')
def plain():
  model = small()
  return model, random_variables(model)


@pytest.mark.slow
def test_neither_losses_nor_detections_change_with_the_canvas():
  # What pools over the image must not see the padding, either.
  reduction = {f'{k}_options': dict(reduction=2) for k in ('attention', 'aw')}
  model = small(dict(aw_conv=True, attention='cbam', **reduction))
  variables = random_variables(model)

  def both(model, images, *rows):
    found = model.detect(images, SIZES)
    return found | model.losses(images, SIZES, *rows, jax.random.key(0))

  run = jax.jit(functools.partial(model.apply, method=both))
  # The padding is filled after normalising, here with anything.
  want, got = (
      run(variables, on_canvas(*canvas, fill=fill), *truth(OBJECTS))
      for canvas, fill in (((64, 64), 0.0), ((96, 128), 5.0))
  )
  assert want['rpn_box'] > 0 and want['roi_box'] > 0
  assert want['valid'].sum() > 6
  same = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(same, got, want)
  # What fills the shapes is not compiled for: twice, as there are two canvases.
  run(variables, on_canvas(64, 64, fill=1.0), *truth([[], []]))
  assert run._cache_size() == 2


@pytest.mark.slow
def test_the_losses_of_the_regions_do_not_train_the_proposals(plain):
  (model, variables), rng = plain, jax.random.key(0)

  def part(params, stage, *arrays):
    call = functools.partial(model.apply, {**variables, 'params': params})
    parts = call(on_canvas(64, 64), SIZES, *arrays, rng, method='losses')
    return parts[f'{stage}_class'] + parts[f'{stage}_box']

  gradients = jax.jit(jax.grad(part), static_argnums=1)

  def trained(stage, rows):
    """Returns for each module which of its parameters are trained."""
    grads = gradients(variables['params'], stage, *truth(rows))
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    assert np.any(grads['backbone']['stem_conv']['kernel'])
    return {
        name: [bool(np.any(g)) for g in jax.tree.leaves(own)]
        for name, own in grads.items()
    }

  by_rois, by_rpn = (trained(stage, OBJECTS) for stage in ('roi', 'rpn'))
  assert not any(by_rois['rpn']) and all(by_rois['box_predictor'])
  assert all(by_rpn['rpn'])
  assert not any(by_rpn['box_head'] + by_rpn['box_predictor'])
  # Without any object neither stage trains a box, the first of the kernels.
  assert trained('rpn', [[], []])['rpn'][:2] == [False, False]
  assert trained('roi', [[], []])['box_predictor'][:2] == [False, False]


def test_statistics_move_only_where_norms_are_trained(plain):
  _, variables = plain
  before = jax.tree.leaves(variables['batch_stats'])
  for moves in (False, True):
    model = small(norm_train=moves)
    call = functools.partial(model.apply, train=True, method='features')
    call = jax.jit(functools.partial(call, mutable='batch_stats'))
    _, updated = call(variables, on_canvas(64, 64), SIZES)
    after = jax.tree.leaves(updated['batch_stats'])
    moved = [not np.array_equal(*ab) for ab in zip(before, after, strict=True)]
    assert len(moved) > 20 and all(m == moves for m in moved)


def outside_of_shards(jaxpr):
  """Yields the names of all operations but those within a shard_map."""
  for equation in jaxpr.eqns:
    yield equation.primitive.name
    if equation.primitive.name != 'shard_map':
      for inner in core.jaxprs_in_params(equation.params):
        yield from outside_of_shards(inner)


@pytest.mark.parametrize('method', ['detect', 'losses'])
def test_every_device_ranks_its_own_images(plain, method):
  """The compiler would gather a batch for top-k, and loop over all of it."""
  model, variables = plain
  arrays = on_canvas(64, 64), SIZES, *truth(OBJECTS)
  arrays = [np.concatenate([x] * 8) for x in arrays]
  arrays = [*arrays, jax.random.key(0)] if method == 'losses' else arrays[:2]
  call = functools.partial(model.apply, method=method)
  with jax.set_mesh(partition.create_mesh()):
    jaxpr = jax.make_jaxpr(call)(variables, *arrays)
  found = set(outside_of_shards(jaxpr.jaxpr))
  assert 'shard_map' in found and 'conv_general_dilated' in found
  assert not found & {'top_k', 'while', 'scan', 'sort'}


def test_half_precision_keeps_boxes_and_losses_in_float32():
  model = small(dict(dtype='bfloat16'), dtype='bfloat16')
  inputs = models.shapes_of(model), *of_shapes((2, 64, 64, 3), (2, 2))
  arrays = *truth(OBJECTS), jax.random.key(0)
  for method, own, dtypes in (
      ('detect', (), {'float32', 'int32', 'bool'}),
      ('features', (), {'bfloat16'}),
      ('losses', arrays, {'float32'}),
  ):
    apply = functools.partial(model.apply, method=method)
    out = jax.eval_shape(apply, *inputs, *own)
    assert {x.dtype.name for x in jax.tree.leaves(out)} == dtypes


def root(model: Annotated[Mapping, Named(models.DETECTORS, 'model')]):
  """A config that holds a detector."""
  del model


@pytest.mark.parametrize('preset', PRESETS)
def test_a_preset_is_complete_in_a_config_and_makes_what_it_makes_alone(preset):
  given = dict(backbone=dict(name='resnet18'), proposals=dict(number=300))
  given = presets.with_preset(preset, name='faster_rcnn', **given)
  section = config.complete(dict(model=given), root).model.to_dict()
  mmdet = preset == 'mmdet'
  want = dict(candidates=1000, train_candidates=2000, number=300, threshold=0.7)
  want |= {'train_number': 1000 if mmdet else 2000}
  assert section['proposals'] == want | {'min_size': 0.0 if mmdet else 1e-3}
  want = dict(weights=(10.0, 10.0, 5.0, 5.0), clamp=math.log(62.5))
  assert section['roi_coder'] == want | {'clamp_below': mmdet}
  # The sections are all the arguments that there are.
  whole = models.create_detector(**section)
  sparse = models.create_detector(backbone='resnet18', preset=preset)
  assert models.shapes_of(whole) == models.shapes_of(sparse)
  # And what is not given has the default without a config, too.
  assert (whole.num_proposals, sparse.num_proposals) == (300, 1000)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(preset='det'), "unknown preset 'det'.*mmdet"),
        (dict(name='resnet18'), "unknown detector 'resnet18'; known: faster"),
        (dict(num_class=3), "of faster_rcnn 'num_class' .*'num_classes'"),
        (dict(anchors=dict(scal=3)), "option of anchors 'scal' .*'scale'"),
        (dict(backbone=dict(widht=3)), "resnet18 'widht'"),
        (dict(backbone=dict(stochastic_depth=0.1)), 'needs model.norm_train'),
        (dict(anchor_matcher=dict(positive=0.2)), '=0.3 above positive=0.2'),
        (dict(backbone=dict(stem='cifar')), 'strides.*do not fit.*64x64'),
    ],
)
def test_what_makes_no_detector_is_refused(options, message):
  arrays = of_shapes((1, 64, 64, 3), (1, 2), (1, 6, 4), (1, 6), (1, 6))
  key = jax.random.key(0)
  with pytest.raises(errors.InputError, match=message):
    init = functools.partial(small(**options).init, method='losses')
    jax.eval_shape(init, key, *arrays, key)


def test_the_config_of_coco_traces_at_full_size():
  """As many regions as are proposed; some of the backbone is frozen."""
  options = dict(preset='torchvision', num_classes=90, model='resnet18')
  recipe = coco.get_config(**options)
  task, key = settings.create_task(recipe), jax.random.key(0)
  like = {
      'image': ((*recipe.data.canvas, 3), np.uint8),
      'image_size': ((2,), np.int32),
      'gt_boxes': ((100, 4), np.float32),
      'gt_labels': ((100,), np.int32),
      'gt_valid': ((100,), bool),
  }
  batch = {k: jax.ShapeDtypeStruct((1, *s), t) for k, (s, t) in like.items()}
  variables = jax.eval_shape(task.init, key, batch)
  loss, (parts, _) = jax.eval_shape(task.loss, variables, batch, key)
  assert loss.shape == () and len(parts) == 4
  outputs = jax.eval_shape(task.forward, variables, batch)
  assert outputs['logits'].shape == (1, 1000, 91)
  frozen = optim.is_frozen(variables['params'], recipe.optimizer.frozen)
  kept = jax.tree.leaves(frozen)
  assert 0 < sum(kept) < len(kept)
