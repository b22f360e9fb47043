"""Pictures of images with the classes of their pixels painted over them."""

from collections.abc import Sequence

import numpy as np

from awconv_jax.tools import contact_sheet, draw_boxes

BACKGROUND = 'background'  # A class of that name is not painted.
_OPACITY = 0.65


def ink_of(label: int, name: str) -> str:
  """Returns the colour of a class in a legend, as in pictures but darker."""
  if name == BACKGROUND:
    return contact_sheet.INK[None]
  darker = (round(0.8 * c) for c in draw_boxes.color_of(label))
  return '#' + ''.join(f'{c:02x}' for c in darker)


def draw(
    image: np.ndarray, classes: np.ndarray, names: Sequence[str]
) -> np.ndarray:
  """Paints each class but the background in its colour, over a grey image.

  Args:
    image: uint8 [H, W, 3].
    classes: uint8 [H, W]; of pixels that are none of the names', the image is
      black.
    names: of the classes.

  Returns:
    uint8 [H, W, 3].
  """
  grey = image.mean(-1, keepdims=True).repeat(3, -1)
  out = grey.copy()
  for label, name in enumerate(names):
    here = classes == label
    if name != BACKGROUND and here.any():
      color = np.float64(draw_boxes.color_of(label))
      out[here] = _OPACITY * color + (1 - _OPACITY) * grey[here]
  out[classes >= len(names)] = 0
  return out.astype(np.uint8)
