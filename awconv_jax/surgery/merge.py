"""`merge_variables`: plain weights in the place of those of an AW model."""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util
import flax.linen as nn
import numpy as np

from awconv_jax.surgery.interception import Path, names


def _is_added(path: Path, initial: Mapping[Path, Any]) -> bool:
  """Returns whether a leaf belongs to the attention branch of an AWConv."""
  return any(
      name in ('attention', 'refinement')
      and ('params', *path[1:i], 'kernel') in initial
      and ('params', *path[1:i], 'attention', 'pointwise1', 'kernel') in initial
      for i, name in enumerate(path)
  )


def merge_variables(
    initial: Mapping[str, Any], plain: Mapping[str, Any]
) -> dict[str, Any]:
  """Puts the variables of a plain model into those of its AW form.

  With gate='tanh' and identity_start=True the result computes exactly what the
  plain model computes.

  Args:
    initial: variables, {collection: tree}, fresh from `init` of the model with
      AWConv, from `replace_conv` or written by hand.
    plain: variables of the model without it.

  Returns:
    Variables as `initial`: those of the attention branches from there, all
    others from `plain`, as they are.

  Raises:
    ValueError: names every path that is missing in `plain`, has no place in
      `initial`, or another shape.
  """
  old = traverse_util.flatten_dict(initial)
  new = traverse_util.flatten_dict(plain)
  # A partitioned array is boxed.
  shape = {p: np.shape(nn.meta.unbox(v)) for p, v in new.items()}
  wanted = {
      p: np.shape(nn.meta.unbox(v))
      for p, v in old.items()
      if p in new or not _is_added(p, old)
  }
  faults = ', '.join(
      f'{names([p])} ({shape.get(p, "missing")} for {wanted.get(p, "nothing")})'
      for p in sorted(wanted | shape)
      if shape.get(p) != wanted.get(p)
  )
  if faults:
    raise ValueError(f'merge_variables: plain weights do not fit: {faults}')
  return traverse_util.unflatten_dict(old | new)
