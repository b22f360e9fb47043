"""What is of single images, on the device that has them.

Left to the compiler, a batch that is sharded over devices is gathered on all of
them by what it cannot divide: a top-k, a loop over samples, a loop that ends
when the last image is done.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

# The mesh axis that a batch is sharded over, see `train/partition.py`.
DATA_AXIS = 'data'


def over_data_shards(
    function: Callable[..., Any],
    batch: Sequence[Any],
    shared: Sequence[Any] = (),
) -> Any:
  """Runs a function on every device's own samples, if a mesh is in force.

  Args:
    function: of (*batch, *shared); a sample's result depends on that sample
      and on what is shared alone.
    batch: trees of arrays [N, ...].
    shared: trees of arrays that every device has whole.

  Returns:
    A tree of arrays [N, ...]; computed at once where there is no mesh with
    that axis, or N is not divisible by its size.
  """
  mesh = jax.sharding.get_abstract_mesh()
  types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  number = jax.tree.leaves(batch)[0].shape[0]
  auto = jax.sharding.AxisType.Auto
  if types.get(DATA_AXIS) != auto or number % mesh.shape[DATA_AXIS]:
    return function(*batch, *shared)
  over_batch, whole = jax.P(DATA_AXIS), jax.P()
  return jax.shard_map(
      function,
      in_specs=(over_batch,) * len(batch) + (whole,) * len(shared),
      out_specs=over_batch,
      axis_names={DATA_AXIS},
      check_vma=False,  # The functions know nothing of meshes.
  )(*batch, *shared)


def per_image(function: Callable[..., Any], *batch: Any, **options: Any) -> Any:
  """Returns a function of one image for every image [N, ...] of a batch."""
  return over_data_shards(jax.vmap(partial(function, **options)), batch)
