"""Whether attention maps differ between classes, over a whole data set."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from awconv_jax import errors, inference
from awconv_jax.explain import maps as of_layers


class ByClass(NamedTuple):
  """Maps of one layer, by class: moments over the images of each.

  Attributes:
    counts: int [classes], images; one of several classes counts for each.
    means: float64 [classes, kh, kw, C/e, D], A averaged over the images; NaN of
      a class without any.
    within, between: float64 [kh, kw, C/e, D], the variance of A among images of
      one class (averaged over all), and of the means of classes (each counted
      as often as it has images). Their sum is the variance over all images.
  """

  counts: np.ndarray
  means: np.ndarray
  within: np.ndarray
  between: np.ndarray


@jax.jit
def _sums(maps: Any, middle: Any, members: jax.Array) -> Any:
  """Returns sums of A - middle, and of its square, over the members [N, K]."""

  def of(maps, middle):
    # About the middle, as float32 would lose a small variance of large values.
    apart = maps - middle
    weights = members.sum(1)
    sums = jnp.einsum('nk,n...->k...', members, apart, precision='highest')
    squares = jnp.einsum('n,n...->...', weights, apart**2, precision='highest')
    return sums, squares

  return {name: of(maps[name], middle[name]) for name in maps}


def members_of(
    batch: Mapping[str, np.ndarray], classes: Sequence[int]
) -> np.ndarray:
  """Returns which rows of a batch are of which classes, float32 [N, K]."""
  if 'gt_labels' in batch:
    labels = np.where(batch['gt_valid'], batch['gt_labels'], -1)
  elif 'gt_classes' in batch:  # A class is on an image by one pixel of it.
    labels = batch['gt_classes'].reshape(len(batch['mask']), -1)
  else:
    labels = np.asarray(batch['label']).reshape(len(batch['mask']), -1)
  found = (labels[..., None] == np.asarray(classes)).any(1)
  return (found & (batch['mask'] > 0)[:, None]).astype(np.float32)


def maps_by_class(
    model: inference.Model,
    batches: Iterable[Mapping[str, np.ndarray]],
    classes: Sequence[int],
) -> dict[str, ByClass]:
  """Returns what the maps of every AW-convolution are, by class.

  Memory does not grow with the number of images, but with that of classes.

  Args:
    model: of `inference.load`.
    batches: as of `data.create` in evaluation, with the labels, or the objects,
      of the images.
    classes: labels; images without any of these are left out.

  Returns:
    By the layer's path; empty for a network without AW-convolutions.

  Raises:
    InputError: there is no image of these classes.
  """
  counts, middle = np.zeros(len(classes), int), None
  sums: Any = {}
  squares: Any = {}

  def look(variables, batch):
    found = of_layers.seen(model.task, variables, batch)
    return {name: layer.maps for name, layer in found.items()}

  for batch in batches:
    members = members_of(batch, classes)
    if not members.any():
      continue
    inputs = {k: batch[k] for k in ('image', 'image_size') if k in batch}
    run = model.compiled('explain.by_class', look, len(members))
    maps = run(inputs)
    if middle is None:
      middle = {name: array[0] for name, array in maps.items()}
    counts += members.sum(0).astype(int)
    for name, (s, q) in jax.device_get(_sums(maps, middle, members)).items():
      sums[name] = sums.get(name, 0) + np.float64(s)
      squares[name] = squares.get(name, 0) + np.float64(q)
  if middle is None:
    raise errors.InputError(f'no image is of the classes {[*classes]}')
  found, total = {}, counts.sum()
  for name in sorted(sums, key=of_layers.natural):
    some = counts.reshape(-1, 1, 1, 1, 1)
    apart = sums[name] / np.maximum(some, 1)
    mean = sums[name].sum(0) / total
    between = (some * (apart - mean) ** 2).sum(0) / total
    within = (squares[name] - (some * apart**2).sum(0)) / total
    means = np.where(some, apart + np.float64(middle[name]), np.nan)
    found[name] = ByClass(counts, means, np.maximum(within, 0), between)
  return found
