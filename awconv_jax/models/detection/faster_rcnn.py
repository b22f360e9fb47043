"""Faster R-CNN over a feature pyramid, with any network here as its backbone.

"Faster R-CNN", https://arxiv.org/abs/1506.01497; "Feature Pyramid Networks for
Object Detection", https://arxiv.org/abs/1612.03144, section 5.2. Boxes are x1,
y1, x2, y2 in pixels of the canvas. All shapes are static; what fills them up is
marked by masks.
"""

from collections.abc import Mapping
from functools import partial
import inspect
from typing import Annotated, Any

from flax.core import FrozenDict
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from awconv_jax import options
from awconv_jax.errors import InputError
from awconv_jax.models.detection import box_head, rpn
from awconv_jax.models.detection.fpn import FPN
from awconv_jax.models.detection.losses import choose_targets
from awconv_jax.models.network import check_norms
from awconv_jax.models.registry import MODELS
from awconv_jax.ops import roi_align as roi_ops
from awconv_jax.ops.anchors import Anchors
from awconv_jax.ops.boxes import Coder
from awconv_jax.ops.data_shards import per_image
from awconv_jax.ops.matcher import check_thresholds
from awconv_jax.options import Options

Group = Mapping[str, Any]
_NONE, _DTYPES = FrozenDict(), ('dtype', 'param_dtype')


def _options(function: Any) -> Options:
  """Marks options of a function; what it is given has no default."""
  parameters = inspect.signature(function).parameters.values()
  given = [p.name for p in parameters if p.default is p.empty]
  return Options(function, given=given)


class FasterRCNN(nn.Module):
  """Faster R-CNN with FPN; groups of options are of one function each.

  The defaults are mmdetection's; `presets` has what torchvision does otherwise.

  Attributes:
    backbone: a network with `num_classes=None`; in a config, its options.
    num_classes: C, without the background.
    mask_padding: whether a padded image gives what it gives alone: anchors in
      the padding are left out, convolutions find zeros there, and attention
      does not see it. Statistics of a batch do, under `norm_train` in training.
      Published networks were trained without this.
    norm_train: whether the backbone's norms use and update the statistics of
      the batch in training, and stochastic depth is on; else the statistics are
      frozen.
    beta: of the smooth L1 loss of all boxes; 0 is L1.
    pyramid: options of `fpn.FPN`.
    anchors: of `ops.anchors.Anchors`, a stride for each level.
    anchor_matcher, roi_matcher: of `ops.matcher.match_boxes`.
    anchor_sampler, roi_sampler: of `ops.sampler.sample`.
    anchor_coder, roi_coder: of `ops.boxes.Coder`.
    proposals: of `rpn.propose`.
    roi_levels, roi_align: of `ops.roi_align.assign_levels` and `roi_align`.
    head, detections: of `box_head.create_head` and `detections`.
    dtype: of the computation, see `models.network.Network`; logits and losses
      are float32 at least, and boxes float32.
    param_dtype: of the parameters.
  """

  backbone: Annotated[
      nn.Module, options.Named(MODELS, 'model', given=('num_classes',))
  ]
  num_classes: options.PositiveInt = 80
  mask_padding: bool = True
  norm_train: bool = False
  beta: options.NonNegativeFloat = 0.0
  pyramid: Annotated[Group, Options(FPN, given=_DTYPES)] = _NONE
  anchors: Annotated[Group, Options(Anchors)] = _NONE
  anchor_matcher: Annotated[Group, _options(rpn.match_anchors)] = _NONE
  anchor_sampler: Annotated[Group, _options(rpn.sample_anchors)] = _NONE
  anchor_coder: Annotated[Group, Options(Coder)] = _NONE
  proposals: Annotated[Group, _options(rpn.propose)] = _NONE
  roi_matcher: Annotated[Group, _options(box_head.match_regions)] = _NONE
  roi_sampler: Annotated[Group, _options(box_head.sample_labels)] = _NONE
  roi_coder: Annotated[Group, Options(box_head.RegionCoder)] = _NONE
  roi_levels: Annotated[Group, _options(roi_ops.assign_levels)] = _NONE
  roi_align: Annotated[Group, _options(roi_ops.roi_align)] = _NONE
  head: Annotated[Group, _options(box_head.create_head)] = _NONE
  detections: Annotated[Group, _options(box_head.detections)] = _NONE
  dtype: options.Dtype = jnp.float32
  param_dtype: options.Dtype = jnp.float32

  def __post_init__(self):
    super().__post_init__()
    for name, match in (
        ('anchor_matcher', rpn.match_anchors),
        ('roi_matcher', box_head.match_regions),
    ):
      bounds = {**match.keywords, **getattr(self, name)}
      thresholds = bounds['positive'], bounds['negative']
      check_thresholds(f'model.{name}', *thresholds)

  def setup(self):
    check_norms(self.backbone, self.norm_train)
    dtypes = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self._anchors = Anchors(**self.anchors)
    self._anchor_coder = Coder(**self.anchor_coder)
    self._roi_coder = box_head.RegionCoder(**self.roi_coder)
    self.fpn = FPN(**self.pyramid, **dtypes)
    ratios = len(self._anchors.ratios)
    self.rpn = rpn.RPNHead(ratios, self.fpn.features, **dtypes)
    self.box_head, self.box_predictor = box_head.create_head(
        self.num_classes, **self.head, **dtypes
    )

  @property
  def num_proposals(self) -> int:
    """How many regions of an image are classified, but in training."""
    bound = partial(rpn.propose, **self.proposals)
    return inspect.signature(bound).parameters['number'].default

  def _valid_sizes(self, image_size, strides):
    """Returns the part of each level that is image, int32 [N, 2], or Nones."""
    if not self.mask_padding:
      return [None] * len(strides)
    # Rounded up as by the convolutions.
    size = jnp.ceil(jnp.asarray(image_size)).astype(jnp.int32)
    return [-(-size // stride) for stride in strides]

  def features(
      self, images: jax.Array, image_size: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, ...]:
    """Returns the pyramid, [N, h, w, features], the finest level first.

    Images and their sizes are as in `detect`; `train` is whether the backbone
    trains its norms, if `norm_train`.
    """
    canvas, strides = images.shape[1:3], self._anchors.strides
    pixels, *sizes = self._valid_sizes(image_size, (1, *strides))
    train = train and self.norm_train
    stages = self.backbone(images, train=train, valid_size=pixels)
    want = [tuple(-(-n // s) for n in canvas) for s in strides]
    got = [x.shape[1:3] for x in stages.values()]
    got.append(tuple(-(-n // 2) for n in got[-1]))
    if want != got:
      raise InputError(
          f'model.anchors.strides={strides} do not fit the backbone, whose '
          f'levels over {canvas[0]}x{canvas[1]} are {got}, not {want}'
      )
    return tuple(self.fpn(stages, sizes[:-1]).values())

  def _score_anchors(self, levels, image_size):
    """Returns logits, deltas and masks of the anchors, each by level."""
    sizes = self._valid_sizes(image_size, self._anchors.strides)
    outputs = [self.rpn(*level) for level in zip(levels, sizes, strict=True)]
    return tuple(zip(*outputs, strict=True))

  def _propose(self, outputs, image_size, anchors, train):
    """Returns the boxes and validity of every image's proposals."""
    fields = dict(anchors=anchors, coder=self._anchor_coder, train=train)
    fields |= self.proposals
    return per_image(rpn.propose, *outputs, image_size, **fields)

  def _classify(self, levels, rois, image_size):
    """Returns logits [N, K, C + 1] and deltas [N, K, C, 4] of regions."""
    levels, strides = levels[:-1], self._anchors.strides[:-1]
    sizes = self._valid_sizes(image_size, strides)
    places = roi_ops.assign_levels(rois, len(strides), **self.roi_levels)
    fields = dict(strides=strides, **self.roi_align)
    pooled = per_image(roi_ops.roi_align, levels, rois, places, sizes, **fields)
    return self.box_predictor(self.box_head(pooled))

  def __call__(
      self, images: jax.Array, image_size: jax.Array, rois: jax.Array
  ) -> dict[str, Any]:
    """Computes with all parameters, for given regions in place of proposals.

    Args:
      images, image_size: see `detect`.
      rois: [N, K, 4].

    Returns:
      rpn_logits [N, A] and rpn_deltas [N, A, 4] by level; logits
      [N, K, C + 1], the background last, and deltas [N, K, C, 4].
    """
    levels = self.features(images, image_size)
    rpn_logits, rpn_deltas, _ = self._score_anchors(levels, image_size)
    logits, deltas = self._classify(levels, rois, image_size)
    rpn_outputs = dict(rpn_logits=rpn_logits, rpn_deltas=rpn_deltas)
    return rpn_outputs | dict(logits=logits, deltas=deltas)

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
    outputs = self._score_anchors(levels, image_size)
    anchors = self._anchors.pyramid(images.shape[1:3])
    rois, valid = self._propose(outputs, image_size, anchors, train=False)
    logits, deltas = self._classify(levels, rois, image_size)
    arrays = logits, deltas, rois, valid, image_size
    fields = dict(coder=self._roi_coder, **self.detections)
    return per_image(box_head.detections, *arrays, **fields)

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

    Each is a sum over samples, divided by their number in the whole batch.

    Args:
      images, image_size: see `detect`.
      gt_boxes: [N, M, 4]; no crowds.
      gt_labels: int [N, M], from 0.
      gt_valid: bool [N, M], False for rows that are padding.
      rng: key of the samples; those of an image follow from its place in the
        batch, and not from the other images.

    Returns:
      rpn_class, rpn_box, roi_class, roi_box, float [].
    """
    gt_boxes = jnp.asarray(gt_boxes, jnp.float32)
    truth = gt_boxes, gt_labels, gt_valid
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(len(images)))
    rpn_keys, roi_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)

    levels = self.features(images, image_size, train=True)
    outputs = self._score_anchors(levels, image_size)
    anchors = self._anchors.pyramid(images.shape[1:3])
    logits, deltas, inside = (jnp.concatenate(x, axis=1) for x in outputs)
    arrays = inside, *truth, rpn_keys
    targets = per_image(
        partial(choose_targets, np.concatenate(anchors)),
        *arrays,
        match=partial(rpn.match_anchors, **self.anchor_matcher),
        sample=partial(rpn.sample_anchors, **self.anchor_sampler),
        coder=self._anchor_coder,
    )
    sums = per_image(rpn.rpn_loss, logits, deltas, targets, beta=self.beta)
    rpn_class, rpn_box = sums.means()

    rois, valid = self._propose(outputs, image_size, anchors, train=True)
    # With the ground truth there are positives from the first step on.
    rois = jax.lax.stop_gradient(jnp.concatenate([rois, gt_boxes], axis=1))
    valid = jnp.concatenate([valid, gt_valid], axis=1)
    arrays = rois, valid, *truth, roi_keys
    targets = per_image(
        choose_targets,
        *arrays,
        match=partial(box_head.match_regions, **self.roi_matcher),
        sample=partial(box_head.sample_labels, **self.roi_sampler),
        coder=self._roi_coder,
    )
    logits, deltas = self._classify(levels, targets.boxes, image_size)
    loss = jax.vmap(partial(box_head.box_loss, beta=self.beta))
    roi_class, roi_box = loss(logits, deltas, targets).means()
    rpn_losses = dict(rpn_class=rpn_class, rpn_box=rpn_box)
    return rpn_losses | dict(roi_class=roi_class, roi_box=roi_box)
