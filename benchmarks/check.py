"""Forms against the reference in float32, on the device: first of all, there.

The interpreter shows that a kernel's arithmetic is right, but not what the
device's compiler makes of it.
"""

from collections.abc import Iterator, Sequence
import functools
import itertools
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from awconv_jax import options
from benchmarks import op

# Rounding, relative. Matrix units may round float32 as bfloat16.
TOLERANCE = 3e-2
RESULTS = ('output', 'input', 'kernel', 'maps')


def run(
    *,
    implementations: Sequence[op.Form] = (
        *('fused', 'auto', 'vmap', 'im2col'),
    ),
    kinds: Sequence[op.Kind] = ('dense', 'strided'),
    batches: Sequence[options.PositiveInt] = (3, 8),
    dtypes: Sequence[Annotated[str, options.OneOf(op.TOLERANCES)]] = (
        *('bfloat16', 'float32'),
    ),
    expansion: options.PositiveInt = 16,
    seed: options.Seed = 0,
) -> Iterator[dict[str, Any]]:
  """Compares, and yields rows as they come.

  Args:
    implementations: forms to compare with 'vmap' in float32 at the highest
      precision.
    kinds: of convolutions, see `op.SHAPES`.
    batches: batch sizes.
    dtypes: of all inputs.
    expansion: e, input channels that share a value of the maps.
    seed: of all inputs.

  Yields:
    For the output and the three gradients the relative error, |a - b| / |b|;
    'right' tells if all are within rounding, and 'repeatable' if a second call
    gives the same bits. A form that cannot run is named and left out.
  """
  for batch, dtype, shape in itertools.product(
      batches, dtypes, op.shapes_of(kinds)
  ):
    inputs = op.random_inputs(shape, batch, expansion, dtype, (seed, 0))
    wide = [array.astype(jnp.float32) for array in inputs]
    with jax.default_matmul_precision('highest'):
      right = jax.jit(op.function_of('vmap', 'both', shape))(*wide)
    row = shape._asdict()
    for name in implementations:
      row |= dict(batch=batch, dtype=dtype, implementation=name)
      form = jax.jit(op.function_of(name, 'both', shape))
      try:
        found, again = form(*inputs), form(*inputs)
        errors = [float(error) for error in _errors(found, right)]
      except jax.errors.JaxRuntimeError as error:
        said = str(error).strip().splitlines()[0]
        print(f'left out: {name} cannot run here: {said}', flush=True)
        continue
      yield row | dict(
          right=all(error <= TOLERANCE for error in errors),
          repeatable=bool(_same(found, again)),
          **dict(zip(RESULTS, errors, strict=True)),
          largest=max(errors),
      )


@jax.jit
def _errors(found, right):
  # On the device: to fetch all results would take longer than to compute them.
  def one(a, b):
    a = a.astype(b.dtype)
    return jnp.linalg.norm((a - b).ravel()) / jnp.linalg.norm(b.ravel())

  return jax.tree.leaves(jax.tree.map(one, found, right))


@jax.jit
def _same(found, again):
  pairs = jax.tree.map(lambda a, b: (a == b).all(), found, again)
  return functools.reduce(jnp.logical_and, jax.tree.leaves(pairs))
