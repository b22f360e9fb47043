"""The attention branches of a network alone, without its convolutions."""

from collections.abc import Mapping
import functools
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
import numpy as np

from awconv_jax.layers import aw_conv
from awconv_jax.train import partition
from benchmarks import timing


def find(
    model: nn.Module, variables: Any, images: jax.ShapeDtypeStruct
) -> dict[str, tuple[aw_conv.AttentionMaps, jax.ShapeDtypeStruct]]:
  """Returns the branches of a network, and the input of each in training.

  Args:
    model: the network.
    variables: its variables, or their shapes.
    images: their shape, [N, H, W, 3].

  Returns:
    By path, such as 'stage1_block1/conv2/attention', the unbound module and
    the shape of its input, [N, H', W', C].
  """
  found = {}

  def record(call, args, kwargs, context):
    module = context.module
    is_call = context.method_name == '__call__'
    if is_call and isinstance(module, aw_conv.AttentionMaps):
      shape = jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)
      found['/'.join(module.path)] = module.clone(parent=None), shape
    return call(*args, **kwargs)

  def apply(variables, images):
    return model.apply(variables, images, train=True, mutable=['batch_stats'])

  with nn.intercept_methods(record):
    jax.eval_shape(apply, variables, images)
  return found


def _part(tree: Mapping[str, Any], path: str) -> Any:
  """Returns the part of a collection at a path."""
  for name in path.split('/'):
    tree = tree[name]
  return tree


def _forward(layers, params, inputs, stats):
  """Returns the maps of all branches, and their updated statistics."""
  maps, updated = {}, {}
  for path, layer in layers.items():
    own = {'params': params[path], 'batch_stats': stats[path]}
    maps[path], updated[path] = layer.apply(
        own, inputs[path], train=True, mutable=['batch_stats']
    )
  return maps, updated


def _random(shapes, sharding, seed):
  """Returns random arrays of the given shapes, by path."""
  rng = np.random.default_rng(seed)
  return {
      path: jax.device_put(
          rng.normal(size=s.shape).astype(np.float32).astype(s.dtype), sharding
      )
      for path, s in shapes.items()
  }


def prepare(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: jax.ShapeDtypeStruct,
    mesh: Mesh,
) -> timing.Ready:
  """Returns all branches of a network as one function, ready to be timed.

  It goes forward and backward, on random inputs and gradients of the maps, of
  the shapes that they have in the network; results are maps, statistics, and
  the gradients of parameters and inputs.

  Args:
    model: the network.
    variables: of it.
    images: their shape, [N, H, W, 3].
    mesh: in force; inputs are sharded over it, as the batch.
  """
  found = find(model, variables, images)
  layers = {path: layer for path, (layer, _) in found.items()}
  params, stats = (
      {path: _part(variables[kind], path) for path in layers}
      for kind in ('params', 'batch_stats')
  )
  shapes = {path: shape for path, (_, shape) in found.items()}
  forward = functools.partial(_forward, layers)
  maps, _ = jax.eval_shape(forward, params, shapes, stats)

  def step(params, stats, inputs, grads):
    maps, pullback, updated = jax.vjp(
        lambda p, x: forward(p, x, stats), params, inputs, has_aux=True
    )
    return maps, updated, pullback(grads)

  rows = partition.over_batch(mesh)
  inputs = [
      (params, stats, _random(shapes, rows, i), _random(maps, rows, 2 + i))
      for i in range(2)
  ]
  return timing.compile_jax(step, inputs, fetch=timing.norm)
