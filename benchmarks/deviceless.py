"""Compiles one program for an accelerator that is not there.

  python -m benchmarks.deviceless '{"chip": "v5e", ...}' FOLDER

Prints what the compiler says of it as a line of JSON. `benchmarks.static` says
what to compile, and `compilers.alone` starts it, in the environment in which
the compilers have to be loaded.
"""

import functools
import json
import math
import sys
import time
from typing import Any

import jax
from jax.experimental.layout import Format, Layout
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding
import numpy as np

from awconv_jax import models
from awconv_jax.compilers import exchanges
from awconv_jax.compilers.alone import CHIPS
from awconv_jax.train import partition
from benchmarks import network, op

# What there is of one kind of chip only, or of neither.
_COLUMNS = ('kilocycles', 'kernel_kilocycles', 'guarded_kilocycles', 'spills')
_COLUMNS += ('registers', 'spill_bytes', 'shared_kib', 'kernels')


def _devices(chip, number):
  """Returns up to 8 devices, of the smallest slice that has them."""
  if chip.platform == 'cuda':
    return chip.devices(str(number))
  sizes = {math.prod(map(int, s.split('x'))): s for s in chip.shapes}
  size = min(size for size in sizes if size >= max(number, 4))
  return chip.devices(sizes[size])[:number]


def _trace_op(devices, asked):
  """Traces a form, with the layouts of operands and results left free.

  The maps are an operand as the product that gives them in a network: their
  last two axes are one.
  """
  shape = op.Shape(**{name: asked[name] for name in op.Shape._fields})
  shapes = op.input_shapes(shape, asked['batch'], asked['expansion'])
  x, kernel, maps, grad = (
      jax.ShapeDtypeStruct(shape, asked['dtype']) for shape in shapes
  )
  product = (*maps.shape[:3], math.prod(maps.shape[3:]))
  product = jax.ShapeDtypeStruct(product, maps.dtype)
  form = op.function_of(asked['implementation'], asked['direction'], shape)
  free = Format(Layout.AUTO, SingleDeviceSharding(devices[0]))

  @functools.partial(jax.jit, in_shardings=free, out_shardings=free)
  def function(x, kernel, product, grad):
    results = form(x, kernel, product.reshape(maps.shape), grad)
    return [
        a.reshape(product.shape) if a.ndim == len(maps.shape) else a
        for a in jax.tree.leaves(results)
    ]

  return function.trace(x, kernel, product, grad)


def _trace_step(devices, asked):
  """Traces a training step on 224 x 224 pixels."""
  mesh = Mesh(np.array(devices), (partition.DATA_AXIS,))
  names = ('model', 'variant', 'dtype')
  model = network.create_model(*(asked[name] for name in names))
  shape = (models.IMAGENET_SIDE, models.IMAGENET_SIDE, 3)
  with jax.set_mesh(mesh):
    init, step = network.create_step(model, mesh, shape, seed=0)
    batch = dict(
        image=jax.ShapeDtypeStruct((asked['batch'], *shape), jnp.float32),
        label=jax.ShapeDtypeStruct((asked['batch'],), jnp.int32),
    )
    return step.trace(jax.eval_shape(init), batch)


def main(request: str, folder: str) -> None:
  """Compiles what is asked for, and prints its columns."""
  asked = json.loads(request)
  chip = CHIPS[asked['chip']]
  start = time.perf_counter()
  devices = _devices(chip, asked['devices'])
  trace = _trace_step if 'model' in asked else _trace_op
  abstract = Mesh(np.array(devices), (partition.DATA_AXIS,)).abstract_mesh
  # Pallas asks it for the kind of GPU.
  with jax.sharding.use_abstract_mesh(abstract):
    lowered = trace(devices, asked).lower(lowering_platforms=(chip.platform,))
    compiled = lowered.compile()
  text = compiled.as_text()
  memory: Any = compiled.memory_analysis()
  costs: Any = compiled.cost_analysis() or {}  # There is none for CUDA.
  given = exchanges.sizes(text)
  found = dict.fromkeys(_COLUMNS) | chip.columns(text, folder)
  found |= dict(
      temporary_mib=memory.temp_size_in_bytes / 2**20,
      megabytes=costs.get('bytes accessed', 0) / 1e6 or None,
      all_gathers=len(given['all-gather']),
      all_reduces=len(given['all-reduce']),
      reduced_mib=sum(given['all-reduce']) / 2**20,
      compile_seconds=time.perf_counter() - start,
  )
  print(json.dumps(found), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
