"""The ink of `digit_scenes`: which digit every pixel is of, or none."""

import functools

import cv2
import numpy as np

from awconv_jax.data.detection import digit_scenes
from awconv_jax.data.segmentation import masks


@functools.cache
def _mask(number: int) -> bytes:
  """Draws the mask of scene `number`, a PNG: 0, or 1 + the digit."""
  image, drawn = digit_scenes.draw(number)
  classes = np.zeros(image.shape[:2], np.uint8)
  for one in drawn:  # They do not overlap; of a crowd every digit counts.
    top, left, bottom, right = one.box
    classes[top:bottom, left:right][one.ink] = one.label + 1
  return cv2.imencode('.png', classes)[1].tobytes()


class DigitMasks(masks.Source, digit_scenes.DigitScenes):
  """Digits on photographs, 11 classes: the background and the digits."""

  class_names = ('background', *digit_scenes.DigitScenes.class_names)

  def __getitem__(self, index: int) -> dict[str, bytes]:
    number = self._numbers[index]
    record = digit_scenes.record(number)
    return {'image': record['image'], 'classes': _mask(number)}
