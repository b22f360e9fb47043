"""Faster R-CNN over a feature pyramid, with any network here as its backbone.

"Faster R-CNN", https://arxiv.org/abs/1506.01497; "Feature Pyramid Networks for
Object Detection", https://arxiv.org/abs/1612.03144, section 5.2:

  loss = rpn_class + rpn_box + roi_class + roi_box

each a sum over samples divided by their number in the whole batch. Boxes are
x1, y1, x2, y2 in pixels of the canvas. All shapes are static; what fills them
up is marked by masks.
"""

from collections.abc import Mapping
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from awconv_jax import errors
from awconv_jax.models import checks
from awconv_jax.models.detection import rpn
from awconv_jax.models.detection.box_head import (
    BoxHead,
    BoxPredictor,
    box_loss,
    sample_regions,
)
from awconv_jax.models.detection.fpn import FPN, level_sizes
from awconv_jax.models.detection.postprocess import detections
from awconv_jax.models.detection.presets import check, merge
from awconv_jax.ops.anchors import pyramid
from awconv_jax.ops.data_shards import per_image
from awconv_jax.ops.roi_align import assign_levels, roi_align

Options = Mapping[str, Any]


class FasterRCNN(nn.Module):
  """Faster R-CNN with FPN. Options are dicts of arguments of one function each.

  Attributes:
    backbone: a network with `num_classes=None`.
    num_classes: C, without the background.
    mask_padding: whether a padded image gives what it gives alone: anchors in
      the padding are left out, convolutions find zeros there, and attention
      does not see it. Statistics of a batch do, under `norm_train` in training.
      Published networks were trained without this.
    norm_train: whether the backbone's norms use and update the statistics of
      the batch in training, and stochastic depth is on; else the statistics are
      frozen.
    beta: of the smooth L1 loss of all boxes; 0 is L1.
    pyramid: of `FPN`: features.
    anchors: of `ops.anchors.pyramid`; a stride for each level.
    anchor_matcher, roi_matcher: of `ops.matcher.match_boxes`.
    anchor_sampler, roi_sampler: of `ops.sampler.sample`, for each image.
    anchor_coder, roi_coder: of `ops.boxes.decode`.
    proposals: of `rpn.propose`; candidates and number also for training.
    roi_levels: of `ops.roi_align.assign_levels`.
    roi_align: of `ops.roi_align.roi_align`.
    head: of `BoxHead` and `BoxPredictor`: features, background.
    detections: of `postprocess.detections`.
    dtype: of the computation; boxes and losses are float32.
    param_dtype: of the parameters.
  """

  backbone: nn.Module
  num_classes: int
  mask_padding: bool
  norm_train: bool
  beta: float
  pyramid: Options
  anchors: Options
  anchor_matcher: Options
  anchor_sampler: Options
  anchor_coder: Options
  proposals: Options
  roi_matcher: Options
  roi_sampler: Options
  roi_coder: Options
  roi_levels: Options
  roi_align: Options
  head: Options
  detections: Options
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def setup(self):
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    features = self.pyramid['features']
    self.fpn = FPN(features, **dtypes)
    self.rpn = rpn.RPNHead(len(self.anchors['ratios']), features, **dtypes)
    self.box_head = BoxHead(self.head['features'], **dtypes)
    self.box_predictor = BoxPredictor(
        self.num_classes, self.head['background'], **dtypes
    )

  @nn.nowrap
  def _valid_sizes(self, image_size):
    """Returns the image's size on every level, or Nones for all of it."""
    size = image_size if self.mask_padding else None
    return level_sizes(size, self.anchors['strides'])

  @nn.nowrap
  def _anchors(self, canvas) -> tuple[np.ndarray, ...]:
    """Returns the anchors of every level, [A, 4]."""
    return pyramid(canvas, **self.anchors)

  @nn.nowrap
  def _check_levels(self, features, canvas):
    """Raises InputError where the strides are not those of the backbone."""
    strides = self.anchors['strides']
    want = [tuple(-(-n // s) for n in canvas) for s in strides]
    got = [x.shape[1:3] for x in features]
    if want != got:
      raise errors.InputError(
          f'model.anchors.strides={tuple(strides)} do not fit the backbone: '
          f'its pyramid over {canvas[0]}x{canvas[1]} pixels has levels {got}, '
          f'not {want}; give the stride of each level'
      )

  def features(
      self, images: jax.Array, image_size: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, ...]:
    """Computes the pyramid.

    Args:
      images: [N, H, W, 3], normalised and then padded.
      image_size: [N, 2], height and width of each without its padding.
      train: whether the backbone trains its norms, if `norm_train`.

    Returns:
      [N, h, w, features] of every level, the finest first.
    """
    sizes = self._valid_sizes(image_size)
    (pixels,) = level_sizes(image_size if self.mask_padding else None, (1,))
    stages = self.backbone(
        images, train=train and self.norm_train, valid_size=pixels
    )
    levels = tuple(self.fpn(stages, sizes[:-1]).values())
    self._check_levels(levels, images.shape[1:3])
    return levels

  def _propose_outputs(self, levels, image_size):
    """Returns logits, deltas and masks of the anchors, each by level."""
    sizes = self._valid_sizes(image_size)
    outputs = [self.rpn(*level) for level in zip(levels, sizes, strict=True)]
    logits, deltas = zip(*outputs, strict=True)
    number = len(self.anchors['ratios'])
    inside = tuple(
        rpn.anchors_inside(x.shape, size, number)
        for x, size in zip(levels, sizes, strict=True)
    )
    return logits, deltas, inside

  @nn.nowrap
  def _proposals(self, outputs, image_size, canvas, train):
    """Returns boxes, scores and validity of every image's proposals."""
    options = dict(self.proposals)
    for name in ('candidates', 'number'):
      in_training = options.pop(f'train_{name}')
      options[name] = in_training if train else options[name]
    propose = functools.partial(rpn.propose, coder=self.anchor_coder, **options)
    anchors = self._anchors(canvas)
    return per_image(
        lambda logits, deltas, *rest: propose(logits, deltas, anchors, *rest),
        *outputs,
        image_size,
    )

  def _classify(self, levels, rois, image_size):
    """Returns logits [N, K, C + 1] and deltas [N, K, C, 4] of regions."""
    levels, strides = levels[:-1], self.anchors['strides'][:-1]
    sizes = self._valid_sizes(image_size)[:-1]
    places = assign_levels(rois, len(strides), **self.roi_levels)
    align = functools.partial(roi_align, strides=strides, **self.roi_align)
    pooled = per_image(align, levels, rois, places, sizes)
    return self.box_predictor(self.box_head(pooled))

  def __call__(
      self, images: jax.Array, image_size: jax.Array, rois: jax.Array
  ) -> dict[str, Any]:
    """Computes all outputs, for regions that are given: no proposals are made.

    What has parameters is all here, to make them and to count them.

    Args:
      images: [N, H, W, 3], normalised and then padded.
      image_size: [N, 2].
      rois: [N, K, 4].

    Returns:
      rpn_logits [N, A] and rpn_deltas [N, A, 4] by level; logits
      [N, K, C + 1], the background last, and deltas [N, K, C, 4].
    """
    levels = self.features(images, image_size)
    rpn_logits, rpn_deltas, _ = self._propose_outputs(levels, image_size)
    logits, deltas = self._classify(levels, rois, image_size)
    return dict(
        rpn_logits=rpn_logits,
        rpn_deltas=rpn_deltas,
        logits=logits,
        deltas=deltas,
    )

  def detect(
      self, images: jax.Array, image_size: jax.Array
  ) -> dict[str, jax.Array]:
    """Detects objects.

    Args:
      images: [N, H, W, 3], normalised and then padded.
      image_size: [N, 2], height and width of each without its padding.

    Returns:
      boxes float32 [N, D, 4] on the canvas, scores float32 [N, D], labels int32
      [N, D] from 0, valid bool [N, D].
    """
    levels = self.features(images, image_size)
    outputs = self._propose_outputs(levels, image_size)
    rois, _, valid = self._proposals(
        outputs, image_size, images.shape[1:3], False
    )
    logits, deltas = self._classify(levels, rois, image_size)
    find = functools.partial(
        detections, coder=self.roi_coder, **self.detections
    )
    return per_image(find, logits, deltas, rois, valid, image_size)

  def losses(
      self,
      images: jax.Array,
      image_size: jax.Array,
      gt_boxes: jax.Array,
      gt_labels: jax.Array,
      gt_valid: jax.Array,
      rng: jax.Array,
  ) -> dict[str, jax.Array]:
    """Computes the four losses of a batch, whose sum is trained.

    Args:
      images: [N, H, W, 3], normalised and then padded.
      image_size: [N, 2], height and width of each without its padding.
      gt_boxes: [N, M, 4]; no crowds.
      gt_labels: int [N, M], from 0.
      gt_valid: bool [N, M], False for rows that are padding.
      rng: key of the samples; those of an image follow from its place in the
        batch, and not from the other images.

    Returns:
      rpn_class, rpn_box, roi_class, roi_box, float32 [].
    """
    levels = self.features(images, image_size, train=True)
    outputs = self._propose_outputs(levels, image_size)
    canvas = images.shape[1:3]
    gt_boxes = jnp.asarray(gt_boxes, jnp.float32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(len(images)))
    keys = jax.vmap(jax.random.split)(keys)
    rpn_sums = self._rpn_sums(outputs, canvas, gt_boxes, gt_valid, keys[:, 0])
    rois, _, valid = self._proposals(outputs, image_size, canvas, True)
    choose = functools.partial(
        sample_regions,
        num_classes=self.num_classes,
        matcher=self.roi_matcher,
        sampler=self.roi_sampler,
        coder=self.roi_coder,
    )
    regions = per_image(
        choose, rois, valid, gt_boxes, gt_labels, gt_valid, keys[:, 1]
    )
    found = self._classify(levels, regions.boxes, image_size)
    loss = functools.partial(box_loss, beta=self.beta)
    rpn_class, rpn_box = rpn_sums.means()
    roi_class, roi_box = jax.vmap(loss)(*found, regions).means()
    return dict(
        rpn_class=rpn_class,
        rpn_box=rpn_box,
        roi_class=roi_class,
        roi_box=roi_box,
    )

  @nn.nowrap
  def _rpn_sums(self, outputs, canvas, gt_boxes, gt_valid, keys):
    """Returns the sums of the anchors' losses for every image."""
    logits, deltas, inside = (jnp.concatenate(x, axis=1) for x in outputs)
    anchors = np.concatenate(self._anchors(canvas))
    loss = functools.partial(
        rpn.rpn_loss,
        matcher=self.anchor_matcher,
        sampler=self.anchor_sampler,
        coder=self.anchor_coder,
        beta=self.beta,
    )
    return per_image(
        lambda logits, deltas, *rest: loss(logits, deltas, anchors, *rest),
        *(logits, deltas, inside, gt_boxes, gt_valid, keys),
    )


def create(
    backbone: nn.Module,
    *,
    num_classes: int,
    preset: str = 'mmdet',
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    **options: Any,
) -> FasterRCNN:
  """Returns the detector over a backbone.

  Args:
    backbone: a network with `num_classes=None`.
    num_classes: without the background.
    preset: name in `detector_presets.PRESETS`, of the options not given.
    dtype, param_dtype: of all but the backbone.
    **options: see `FasterRCNN`.

  Raises:
    InputError: the preset or an option is unknown, or a value impossible.
  """
  merged = merge(options, preset)
  check(merged)
  depth = getattr(backbone, 'stochastic_depth', 0)
  if depth and not merged['norm_train']:
    raise errors.InputError(
        f'model.backbone.stochastic_depth={depth} needs model.norm_train=true: '
        'with frozen norms the backbone runs as in evaluation'
    )
  checks.check_count('num_classes', num_classes)
  for field, value in (('dtype', dtype), ('param_dtype', param_dtype)):
    checks.check_dtype(field, value)
  return FasterRCNN(
      backbone=backbone,
      num_classes=num_classes,
      dtype=dtype,
      param_dtype=param_dtype,
      **merged,
  )
