"""Test-time flip: detections of an image and of its mirror image, merged.

The boxes of both are put together, and of those that overlap within a class the
one with the highest score stays, as after the network and in detectron2.
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp

from awconv_jax.ops import boxes as box_ops
from awconv_jax.ops import nms

Arrays = Mapping[str, jax.Array]
DETECTIONS = ('boxes', 'scores', 'labels', 'valid')


def mirror(images: jax.Array, widths: jax.Array) -> jax.Array:
  """Mirrors images [B, H, W, C] within widths [B]; padding stays right."""
  column = jnp.arange(images.shape[2])
  width = jnp.rint(widths).astype(jnp.int32)[:, None]
  source = jnp.where(column < width, width - 1 - column, column)
  return jnp.take_along_axis(images, source[:, None, :, None], axis=2)


def merge(one: Arrays, two: Arrays, threshold: float) -> dict[str, jax.Array]:
  """Returns the best D of two times D detections of an image, by falling score.

  All are boxes [D, 4], scores [D], labels int [D] and valid bool [D]; threshold
  is the IoU above which, within a class, the lower score is dropped.
  """
  both = {k: jnp.concatenate([one[k], two[k]]) for k in DETECTIONS}
  keep = nms.nms(
      both['boxes'], both['scores'], both['valid'], threshold, both['labels']
  )
  ranked = jnp.where(keep, both['scores'], -jnp.inf)
  _, best = jax.lax.top_k(ranked, len(one['scores']))
  merged = {name: array[best] for name, array in both.items()}
  return merged | {'valid': keep[best]}


class Flipped:
  """A detection task that looks at every image twice.

  The threshold, see `merge`, is to be that of the network's suppression.
  """

  def __init__(self, task: Any, threshold: float):
    self._task, self._threshold = task, threshold

  def predict(self, variables: Any, batch: Arrays) -> dict[str, jax.Array]:
    """Returns what the task does, with the merged detections."""
    widths = batch['image_size'][:, 1]
    one = self._task.predict(variables, batch)
    mirrored = {**batch, 'image': mirror(batch['image'], widths)}
    two = self._task.predict(variables, mirrored)
    two['boxes'] = jax.vmap(box_ops.flip)(two['boxes'], widths[:, None])
    pair = ({name: x[name] for name in DETECTIONS} for x in (one, two))
    merge_images = functools.partial(merge, threshold=self._threshold)
    return {**one, **jax.vmap(merge_images)(*pair)}
