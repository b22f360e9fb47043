"""Attention maps of the AW-convolutions of a network, and what they do to it.

"An Attention Module for Convolutional Neural Networks",
https://arxiv.org/abs/2108.08205: O[n] = conv(I[n], K * (1 + A[n])).
"""

from collections.abc import Iterable, Iterator, Sequence
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from awconv_jax import errors, inference
from awconv_jax.data import any_image
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
  factor = maps + (1.0 if layer.residual else 0.0)
  factor = jnp.repeat(factor, outputs // maps.shape[4], axis=4)
  changed = jnp.sqrt((factor**2 * squares).sum((1, 2, 3)))
  return KernelNorms(jnp.sqrt(squares.sum((0, 1, 2))), changed)


def seen(task: Any, variables: Any, batch: Any) -> dict[str, Layer]:
  """Returns what the AW-convolutions do to a batch, by path; to be traced."""
  found = {}

  def look(call, args, kwargs, context):
    out, layer = call(*args, **kwargs), context.module
    if isinstance(layer, AWConv) and context.method_name == '_maps':
      # NumPy would sum bfloat16 in bfloat16.
      maps = out.astype(jnp.float32)
      found['/'.join(layer.path)] = Layer(maps, _norms(layer, maps))
    return out

  with nn.intercept_methods(look):
    task.forward(variables, batch)
  return found


def streamed(
    model: inference.Model,
    images: Iterable[any_image.AnyImage],
    *,
    batch_size: int = 32,
) -> Iterator[dict[str, Layer] | errors.InputError]:
  """Yields `layers` of each of any number of images, in their order.

  The axis of images is left out. In the place of what is no image there is its
  InputError.
  """

  def look(variables, batch):
    # One flat dict, each array with a row for every image.
    outputs, count = {}, len(batch['image'])
    for name, (maps, norms) in seen(model.task, variables, batch).items():
      plain = jnp.broadcast_to(norms.plain, (count, *norms.plain.shape))
      outputs |= {
          (name, 'maps'): maps,
          (name, 'plain'): plain,
          (name, 'recalibrated'): norms.recalibrated,
      }
    return outputs

  def layers_of(one, row):
    del row
    return {
        # Copies, as a view would keep the whole batch.
        name: Layer(
            one[name, 'maps'].copy(),
            KernelNorms(
                one[name, 'plain'].copy(), one[name, 'recalibrated'].copy()
            ),
        )
        for name in sorted({name for name, _ in one}, key=natural)
    }

  run = model.compiled('explain.maps', look, batch_size)
  yield from model.streamed(images, batch_size, run, layers_of)


def together(each: Sequence[dict[str, Layer]]) -> dict[str, Layer]:
  """Returns what `layers` does, from what `streamed` yields of each image."""

  def joined(name):
    maps = np.stack([one[name].maps for one in each])
    changed = np.stack([one[name].norms.recalibrated for one in each])
    return Layer(maps, KernelNorms(each[0][name].norms.plain, changed))

  return {name: joined(name) for name in each[0]} if each else {}


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
  size = inference.size_of_batches(len(images), batch_size)
  found = streamed(model, images, batch_size=size)
  return together(inference.results_of(images, found))


def attention_maps(
    model: inference.Model, images: inference.Images, *, batch_size: int = 32
) -> dict[str, np.ndarray]:
  """Returns A of every AW-convolution, by path: float32 [N, kh, kw, C/e, D].

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
