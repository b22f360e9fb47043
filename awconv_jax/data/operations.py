"""The operations that AutoAugment and RandAugment choose from, by name.

https://arxiv.org/abs/1805.09501, table 6, without those that need a second
image or erase a part. They change the intensities of pixels, or they take each
pixel from where a matrix M points to:

  O[y, x] = f(I[y, x])    or    O[y, x] = I[M (x, y, 1)]
"""

import cv2
import numpy as np

from awconv_jax.data import color, intensities

# `(image, value) -> image`, images uint8 [H, W, C]. The value of posterize is
# the number of bits kept, that of solarize the lowest intensity inverted, that
# of solarize_add what is added to the lower half of them; the last four take
# the share of the image itself, 1 for no change.
INTENSITY_OPERATIONS = {
    'auto_contrast': lambda image, value: intensities.auto_contrast(image),
    'equalize': lambda image, value: intensities.equalize(image),
    'invert': lambda image, value: intensities.invert(image),
    'posterize': intensities.posterize,
    'solarize': intensities.solarize,
    'solarize_add': intensities.solarize_add,
    'color': color.adjust_saturation,
    'contrast': color.adjust_contrast,
    'brightness': color.adjust_brightness,
    'sharpness': intensities.sharpen,
}


def _rotation(value, width, height):
  """By an angle in degrees, anticlockwise about the image's centre."""
  angle = np.deg2rad(value)
  cos, sin = np.cos(angle), np.sin(angle)
  x, y = width / 2, height / 2
  return [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]]


# `(value, width, height) -> M`, from a place in the result to one in the
# image. Both are measured from the upper left corner of the upper left pixel,
# as Pillow does, whose centre is (0.5, 0.5). Shears take x per y (y per x),
# translations a share of the side, to the left and up.
MATRICES = {
    'rotate': _rotation,
    'shear_x': lambda value, width, height: [[1, value, 0], [0, 1, 0]],
    'shear_y': lambda value, width, height: [[1, 0, 0], [value, 1, 0]],
    'translate_x': lambda value, width, height: [
        [1, 0, value * width],
        [0, 1, 0],
    ],
    'translate_y': lambda value, width, height: [
        [1, 0, 0],
        [0, 1, value * height],
    ],
}
OPERATIONS = (*INTENSITY_OPERATIONS, *MATRICES)
INTERPOLATIONS = {'nearest': cv2.INTER_NEAREST, 'linear': cv2.INTER_LINEAR}


def apply(
    image: np.ndarray,
    name: str,
    value: float | None,
    *,
    fill: tuple[int, int, int],
    interpolation: str,
) -> np.ndarray:
  """Returns the image after one operation, uint8 [H, W, C].

  Args:
    image: uint8 [H, W, C], C = 1 or 3; it is not changed.
    name: one of `OPERATIONS`.
    value: how much, in the units given there; None for those without.
    fill: red, green and blue of what comes from outside of the image; a grey
      image takes the grey of them.
    interpolation: a key of `INTERPOLATIONS`, for places between pixels.
  """
  if name in INTENSITY_OPERATIONS:
    return INTENSITY_OPERATIONS[name](image, value)
  height, width, channels = image.shape
  moved = cv2.warpAffine(
      image,
      _between_centres(MATRICES[name](value, width, height)),
      (width, height),
      flags=INTERPOLATIONS[interpolation] | cv2.WARP_INVERSE_MAP,
      borderMode=cv2.BORDER_CONSTANT,
      borderValue=fill if channels == 3 else (round(np.dot(color.GREY, fill)),),
  )
  # OpenCV drops the channel axis of grey images.
  return moved.reshape(image.shape)


def _between_centres(matrix) -> np.ndarray:
  """Returns M for places measured from the centre of the first pixel."""
  matrix = np.array(matrix, np.float64)
  matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
  return matrix
