"""Random changes of brightness, contrast, saturation and hue.

Colour jitter as torchvision defines it (its `ColorJitter`; the idea is that of
A. Howard, https://arxiv.org/abs/1312.5402). The first three blend the image
with a degenerate one, D, by a random factor f; the last turns the hue:

  O = f * I + (1 - f) * D

D is black for the brightness, the mean grey of the whole image for the
contrast, and the grey version of the image for the saturation. All round to
the nearest intensity, where torchvision cuts off the fraction.
"""

from typing import Annotated

import cv2
import numpy as np

from awconv_jax.options import Bound, NonNegativeFloat

# Shares of red, green and blue in grey (ITU-R BT.601).
GREY = np.array([0.299, 0.587, 0.114])


def color_jitter(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    brightness: NonNegativeFloat,
    contrast: NonNegativeFloat,
    saturation: NonNegativeFloat,
    hue: Annotated[float, Bound(ge=0, le=0.5)],
) -> np.ndarray:
  """Changes the colours in four ways, in a random order.

  Args:
    image: uint8 [H, W, C], C = 1 or 3; a grey image has no saturation or hue
      to change.
    rng: source of the random numbers.
    brightness, contrast, saturation: x, at least 0, for a factor drawn
      uniformly from [max(0, 1 - x), 1 + x].
    hue: h in [0, 0.5], for a shift drawn uniformly from [-h, h] of the circle.

  Returns:
    uint8 [H, W, C].
  """
  amounts = dict(
      brightness=brightness, contrast=contrast, saturation=saturation
  )
  values = {
      name: rng.uniform(max(0, 1 - amount), 1 + amount)
      for name, amount in amounts.items()
  }
  values['hue'] = rng.uniform(-hue, hue)
  names = tuple(ADJUSTMENTS)
  for i in rng.permutation(len(names)):
    image = ADJUSTMENTS[names[i]](image, values[names[i]])
  return np.ascontiguousarray(image)


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
  """Returns uint8 [H, W, C], blended with black; 1 is no change."""
  if factor == 1:
    return image
  return cv2.convertScaleAbs(image, alpha=factor).reshape(image.shape)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
  """Returns uint8 [H, W, C], blended with its mean grey; 1 is no change."""
  if factor == 1:
    return image
  means = cv2.mean(image)
  grey = means[0] if image.shape[2] == 1 else np.dot(GREY, means[:3])
  blended = cv2.addWeighted(image, factor, image, 0, (1 - factor) * grey)
  return blended.reshape(image.shape)


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
  """Returns uint8 [H, W, C], blended with its grey version; 1 is no change."""
  if factor == 1 or image.shape[2] == 1:
    return image
  # One matrix over the channels: those of O from those of I.
  return cv2.transform(image, factor * np.eye(3) + (1 - factor) * GREY)


def adjust_hue(image: np.ndarray, shift: float) -> np.ndarray:
  """Returns uint8 [H, W, C] with the hue turned; 0 is no change.

  Args:
    image: uint8 [H, W, C].
    shift: share of the circle, in [-1, 1].
  """
  if shift == 0 or image.shape[2] == 1:
    return image
  # In float32: OpenCV's HSV in bytes is off by up to 8 there and back.
  # In place: new memory for each step takes longer than the steps.
  pixels = image.astype(np.float32)
  pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV, dst=pixels)
  # Not below 0, where the way back mistakes some; beyond a turn it wraps.
  pixels[..., 0] += 360 * (shift % 1)
  pixels = cv2.cvtColor(pixels, cv2.COLOR_HSV2RGB, dst=pixels)
  return cv2.convertScaleAbs(pixels)  # Rounds.


ADJUSTMENTS = {
    'brightness': adjust_brightness,
    'contrast': adjust_contrast,
    'saturation': adjust_saturation,
    'hue': adjust_hue,
}
