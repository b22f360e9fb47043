"""Feature Pyramid Network: every level of the backbone with equal channels.

"Feature Pyramid Networks for Object Detection",
https://arxiv.org/abs/1612.03144, section 3; from the coarsest level up:

  m[i] = conv1x1(c[i]) + nearest_x2(m[i + 1])      p[i] = conv3x3(m[i])

and one level more, every second row and column of the last one (section 4.1),
that proposals come from.
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from awconv_jax.layers.conv import Conv
from awconv_jax.ops.valid_area import mask_padding
from awconv_jax.options import PositiveInt


class FPN(nn.Module):
  """The pyramid over a backbone's features.

  Attributes:
    features: channels of its levels.
    dtype, param_dtype: of the computation, and of the parameters.
  """

  features: PositiveInt = 256
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
      self,
      features: Mapping[str, jax.Array],
      valid_sizes: Sequence[jax.Array | None],
  ) -> dict[str, jax.Array]:
    """Computes the levels of the pyramid.

    Args:
      features: 'c2': [N, H/4, W/4, C2], 'c3', ..., each half as large as the
        one before, rounded up.
      valid_sizes: of each of these, see `ops.valid_area`.

    Returns:
      'p2': [N, H/4, W/4, features], 'p3', ..., and one level more. Outside of
      the valid area they mean nothing.
    """
    conv = functools.partial(
        Conv,
        self.features,
        # As mmdetection's; torchvision's has another spread.
        kernel_init=nn.initializers.xavier_uniform(),
        dtype=self.dtype,
        param_dtype=self.param_dtype,
    )
    stages = sorted(int(name.removeprefix('c')) for name in features)
    levels, above = {}, None
    for stage, valid_size in zip(stages[::-1], valid_sizes[::-1], strict=True):
      x = conv((1, 1), name=f'lateral{stage}')(features[f'c{stage}'])
      if above is not None:  # Every value of it twice.
        height, width = x.shape[1:3]
        x += above.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]
      above = x
      # The 3x3 window at the edge of the image finds zeros, as at the canvas'.
      inside = mask_padding(above, valid_size)
      output = conv((3, 3), padding=1, name=f'output{stage}')
      levels[f'p{stage}'] = output(inside)
    levels = dict(reversed(levels.items()))
    last = stages[-1]
    return levels | {f'p{last + 1}': levels[f'p{last}'][:, ::2, ::2]}
