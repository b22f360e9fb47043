"""Attention maps of the AW-convolutions of a network, and what they do to it.

"An Attention Module for Convolutional Neural Networks",
https://arxiv.org/abs/2108.08205: O[n] = conv(I[n], K * (1 + A[n])).
"""

from collections.abc import Iterator
import functools
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from awconv_jax import inference
from awconv_jax.explain.prepared import prepare
from awconv_jax.layers.aw_conv import AWConv


class KernelNorms(NamedTuple):
  """Norms of a layer's kernel, one for every output channel.

  plain [D] of K, and recalibrated [N, D] of K * (1 + A[n]), over taps and input
  channels; of K * A[n] in a layer without the residual.
  """

  plain: np.ndarray
  recalibrated: np.ndarray


class Layer(NamedTuple):
  """What an AW-convolution does: maps [N, kh, kw, C/e, D], and norms."""

  maps: Any
  norms: KernelNorms


def natural(path: str) -> list[str | int]:
  """Returns what sorts paths as they are called: block 2 before block 10."""
  parts = re.split(r'(\d+)', path)
  return [int(part) if part.isdigit() else part for part in parts]


def _norms(layer: AWConv, maps: jax.Array) -> KernelNorms:
  """Returns the norms of a layer of which a call is under way."""
  kernel = layer.get_variable('params', 'kernel').astype(jnp.float32)
  if layer.mask is not None:
    kernel = kernel * layer.mask
  kh, kw, channels, outputs = kernel.shape
  groups = maps.shape[3]
  # Of the inputs that share one value of A.
  squares = (kernel**2).reshape(kh, kw, groups, channels // groups, outputs)
  squares = squares.sum(3)
  factor = maps.astype(jnp.float32) + (1.0 if layer.residual else 0.0)
  factor = jnp.repeat(factor, outputs // maps.shape[4], axis=4)
  changed = jnp.sqrt((factor**2 * squares).sum((1, 2, 3)))
  return KernelNorms(jnp.sqrt(squares.sum((0, 1, 2))), changed)


def seen(task: Any, variables: Any, batch: Any) -> dict[str, Layer]:
  """Returns what the AW-convolutions do to a batch, by path; to be traced."""
  found = {}

  def look(call, args, kwargs, context):
    out, layer = call(*args, **kwargs), context.module
    if isinstance(layer, AWConv) and context.method_name == '_maps':
      found['/'.join(layer.path)] = Layer(out, _norms(layer, out))
    return out

  with nn.intercept_methods(look):
    task.forward(variables, batch)
  return found


# By the task, of which a model has one: a second call does not compile.
_compiled = functools.partial(jax.jit, static_argnums=0)(seen)


def _batches(
    model: inference.Model, images: inference.Images, size: int
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
  """Yields the numbers of images of one shape, and their rows, filled up."""
  rows = [prepare(model, image)[1] for image in images]
  shapes = [row['image'].shape for row in rows]
  for shape in dict.fromkeys(shapes):
    members = [n for n, other in enumerate(shapes) if other == shape]
    most = min(size, len(members))
    for start in range(0, len(members), most):
      part = members[start : start + most]
      stacked = {k: np.stack([rows[n][k] for n in part]) for k in rows[0]}
      yield part, {
          k: np.resize(array, (most, *array.shape[1:]))
          for k, array in stacked.items()
      }


def layers(
    model: inference.Model, images: inference.Images, *, batch_size: int = 32
) -> dict[str, Layer]:
  """Returns maps and norms of every AW-convolution, by path, on the host.

  Args:
    model: of `inference.load`.
    images: of any sizes; see `inference.Model`.
    batch_size: images at a time at most.

  Returns:
    By the layer's path, such as 'stage1_block1/conv1', in the order of calls;
    empty for a network without AW-convolutions, or without images.

  Raises:
    InputError: one of them is no image.
  """
  parts, numbers = [], []
  for members, batch in _batches(model, images, batch_size):
    outputs = jax.device_get(_compiled(model.task, model.variables, batch))
    numbers += members
    parts.append((len(members), outputs))
  if not parts:
    return {}
  back = np.argsort(numbers)

  def joined(name, pick):
    rows = [pick(outputs[name])[:count] for count, outputs in parts]
    return np.concatenate(rows)[back]

  first = parts[0][1]
  return {
      name: Layer(
          joined(name, lambda layer: layer.maps),
          KernelNorms(
              first[name].norms.plain,
              joined(name, lambda layer: layer.norms.recalibrated),
          ),
      )
      for name in sorted(first, key=natural)
  }


def attention_maps(
    model: inference.Model, images: inference.Images, *, batch_size: int = 32
) -> dict[str, np.ndarray]:
  """Returns A of every AW-convolution, by path: float [N, kh, kw, C/e, D].

  See `layers`. Where output channels share values there are as many fewer.
  """
  found = layers(model, images, batch_size=batch_size)
  return {name: layer.maps for name, layer in found.items()}


def kernel_norms(
    model: inference.Model, images: inference.Images, *, batch_size: int = 32
) -> dict[str, KernelNorms]:
  """Returns how A changes every kernel, by path; see `layers`."""
  found = layers(model, images, batch_size=batch_size)
  return {name: layer.norms for name, layer in found.items()}
