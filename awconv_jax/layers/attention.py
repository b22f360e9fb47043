"""The attention layers by name, and what a layer has to be.

A layer is a Linen module, called as `layer(x, valid_size=valid_size)`, with x
and a result of [N, H, W, C]. It stands where its class attribute `place` says:

  'block': on every block's branch, after its last norm, before the addition;
    where a layer says nothing. It can refine an AW-convolution's maps, too.
  'stage': on the output of every stage before one that strides.
  'conv': in the place of one 3x3 convolution of each block of the last three
    stages. It extends `nn.Conv`, is made with its fields, and returns what its
    shape is. A field `convolution` gets what makes the convolution that would
    stand there, `downsample` by how much to shrink the images.
  'aw_conv': in the place of the convolutions that AW-convolutions would take,
    those of the network's `aw_where` and `aw_stages`, and so without these. It
    extends `nn.Conv`, too.

`valid_size` is as in `ops.valid_area`. A layer that takes it leaves the padding
out of averages and maxima, so that with the running statistics of its norms the
output in an image's area is that of the image alone; in batch statistics
padding counts, too. A layer that does not take it gets zeros for the padding:
the same for what looks at each position by itself, while an average depends on
how far an image was padded. Detectors pad; classifiers do not.

A network sets the fields dtype, param_dtype and train of those that have them.
Other fields that are annotated are options, `model.attention_options`; all have
defaults.

A new one is a file beside this and an entry here. One outside of the package is
named 'module:Class', and needs none.
"""

from collections.abc import Mapping, Sequence
from functools import partial
import importlib
import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax.errors import InputError, look_up
from awconv_jax.layers.attention_augmented import AugmentedConv
from awconv_jax.layers.bam import BAM
from awconv_jax.layers.cbam import CBAM
from awconv_jax.layers.condconv import CondConv
from awconv_jax.layers.coordinate_attention import CoordinateAttention
from awconv_jax.layers.dynamic_conv import DynamicConv
from awconv_jax.layers.eca import ECA
from awconv_jax.layers.gather_excite import GatherExcite
from awconv_jax.layers.odconv import ODConv
from awconv_jax.layers.selective_kernel import SelectiveKernelConv
from awconv_jax.layers.simam import SimAM
from awconv_jax.layers.squeeze_excite import SqueezeExcite
from awconv_jax.ops.valid_area import mask_padding

ATTENTION = {
    'se': SqueezeExcite,
    'cbam': CBAM,
    'eca': ECA,
    'coord': CoordinateAttention,
    'simam': SimAM,
    'ge': GatherExcite,
    'bam': BAM,
    'aa': AugmentedConv,
    'condconv': CondConv,
    'dynamic': DynamicConv,
    'odconv': ODConv,
    'sk': SelectiveKernelConv,
}
PLACES = BLOCK, STAGE, CONV, AW_CONV = 'block', 'stage', 'conv', 'aw_conv'


def place_of(layer: type) -> str:
  """Returns where a layer stands, one of `PLACES`."""
  return getattr(layer, 'place', BLOCK)


IN_BLOCK = {k: v for k, v in ATTENTION.items() if place_of(v) == BLOCK}


def find(
    name: str | type, kind: str = 'attention', places: Sequence[str] = PLACES
) -> type:
  """Returns a layer by its name, 'module:Class' for one outside; or itself.

  `kind` is what to call it in errors, `places` are those that it may have.

  Raises:
    InputError: there is none, or it is not what a layer has to be.
  """
  layer: Any = name
  if isinstance(name, str):
    module, _, attribute = name.partition(':')
    if not attribute:
      known = {k: v for k, v in ATTENTION.items() if place_of(v) in places}
      return look_up(kind, name, known)
    try:
      layer = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # It is the user's own program.
      reason = ' '.join(f'{type(error).__name__}: {error}'.split())
      raise InputError(
          f'{kind} {name!r} cannot be imported: {reason}; want '
          f"'module:Class'; run it where {module}.py lies, or with its folder "
          'in PYTHONPATH'
      ) from error
  fault = ''
  if not isinstance(layer, type) or not issubclass(layer, nn.Module):
    fault = 'is no class of Linen modules (flax.linen.Module)'
  elif place_of(layer) not in places:
    fault = f'has place={place_of(layer)!r}, want one of {places}'
  elif (place := place_of(layer)) in (CONV, AW_CONV):
    if not issubclass(layer, nn.Conv):
      fault = f'has place={place!r}, but does not extend flax.linen.Conv'
  else:
    fields = inspect.signature(layer).parameters.values()
    if needed := [p.name for p in fields if p.default is p.empty]:
      fault = f'has fields without a default, which nothing sets: {needed}'
  if fault:
    raise InputError(f'{kind} {name!r} {fault}')
  return layer


def partial_of(layer: type, given: Mapping[str, Any], **fields: Any) -> partial:
  """Returns a layer with fields, and what it has of the given ones."""
  has = layer.__dataclass_fields__
  return partial(layer, **{k: v for k, v in given.items() if k in has} | fields)


def call(
    layer: nn.Module,
    x: jax.Array,
    valid_size: jax.Array | None,
    shape: Sequence[int] | None = None,
    kind: str = 'attention',
) -> Any:
  """Returns what a layer makes of x, whether it takes valid_size or not.

  `shape` is what the result is to have, None for that of x; `kind` is what to
  call the layer in errors.

  Raises:
    InputError: it cannot be called so, or returns something else.
  """
  wanted = tuple(x.shape if shape is None else shape)
  name = f'{type(layer).__module__}:{type(layer).__qualname__}'
  remedy = "see 'A layer of your own' in docs/layers.md"
  signature = inspect.signature(layer.__call__)
  if 'valid_size' in signature.parameters:
    given = dict(valid_size=valid_size)
  else:
    given, x = {}, mask_padding(x, valid_size)
  try:
    signature.bind(x, **given)
  except TypeError as error:
    raise InputError(
        f'{kind}={name!r} cannot be called: {error}; {remedy}'
    ) from error
  out = layer(x, **given)
  if (got := jnp.shape(out)) != wanted:
    raise InputError(
        f'{kind}={name!r} returns {got} for {x.shape}, want {wanted}; {remedy}'
    )
  return out
