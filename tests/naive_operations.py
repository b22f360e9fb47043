"""The augmentations' operations again: loops over pixels, in float64."""

import colorsys

import numpy as np

BLEND = (0.299, 0.587, 0.114)


def grey_of(pixel):
  return pixel[0] if len(pixel) == 1 else sum(map(float, BLEND * pixel))


def each_pixel(image, change):
  """Returns float [H, W, C] with `change` of each pixel."""
  result = np.zeros(image.shape)
  for y, x in np.ndindex(image.shape[:2]):
    result[y, x] = change(image[y, x].astype(float))
  return np.clip(result, 0, 255)


def each_channel(image, make_table):
  """Returns the image by a table of 256 entries for each channel."""
  result = np.zeros(image.shape)
  for c in range(image.shape[2]):
    values = [int(value) for value in image[..., c].flat]
    table = make_table(values)
    result[..., c] = np.reshape([table[v] for v in values], image.shape[:2])
  return result


def auto_contrast(image, value):
  del value

  def make_table(values):
    low, high = min(values), max(values)
    if low == high:
      return range(256)
    scale = 255.0 / (high - low)
    # Outside of low to high nothing is looked up.
    return [int(v * scale + -low * scale) for v in range(256)]

  return each_channel(image, make_table)


def equalize(image, value):
  del value

  def make_table(values):
    counts = [values.count(v) for v in range(256)]
    step = (len(values) - [c for c in counts if c][-1]) // 255
    if step == 0:
      return range(256)
    return [min((step // 2 + sum(counts[:v])) // step, 255) for v in range(256)]

  return each_channel(image, make_table)


def posterize(image, bits):
  unit = 2 ** (8 - bits)
  return each_pixel(image, lambda p: p // unit * unit)


def solarize(image, threshold):
  return each_pixel(
      image, lambda p: [v if v < threshold else 255 - v for v in p]
  )


def solarize_add(image, amount):
  return each_pixel(
      image, lambda p: [min(v + amount, 255) if v < 128 else v for v in p]
  )


def contrast(image, factor):
  mean = np.mean([grey_of(p) for row in image for p in row])
  return each_pixel(image, lambda p: factor * p + (1 - factor) * mean)


def sharpness(image, factor):
  height, width, _ = image.shape
  smooth = image.astype(float)
  for y in range(1, height - 1):
    for x in range(1, width - 1):
      total = 4.0 * image[y, x]
      for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
          total = total + image[y + dy, x + dx]
      smooth[y, x] = total / 13
  return np.clip(factor * image + (1 - factor) * smooth, 0, 255)


def hue(image, shift):
  """By the standard library's HSV; grey images have no hue."""
  if image.shape[2] == 1:
    return image

  def turn(pixel):
    h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
    return 255 * np.array(colorsys.hsv_to_rgb((h + shift) % 1, s, v))

  return each_pixel(image, turn)


INTENSITIES = {
    'auto_contrast': auto_contrast,
    'equalize': equalize,
    'invert': lambda image, value: each_pixel(image, lambda p: 255 - p),
    'posterize': posterize,
    'solarize': solarize,
    'solarize_add': solarize_add,
    'color': lambda image, factor: each_pixel(
        image, lambda p: factor * p + (1 - factor) * grey_of(p)
    ),
    'contrast': contrast,
    'brightness': lambda image, factor: each_pixel(image, lambda p: factor * p),
    'sharpness': sharpness,
}


def source(name, value, x, y, width, height):
  """Returns where a result's place (x, y) is taken from."""
  if name == 'rotate':
    # Down is the direction of y: on a screen, this turns anticlockwise.
    turn = np.exp(1j * np.deg2rad(value))
    centre = complex(width / 2, height / 2)
    place = turn * (complex(x, y) - centre) + centre
    return place.real, place.imag
  return {
      'shear_x': (x + value * y, y),
      'shear_y': (x, y + value * x),
      'translate_x': (x + value * width, y),
      'translate_y': (x, y + value * height),
  }[name]


def move(image, name, value, fill, interpolation):
  """Returns float [H, W, C]: the pixels from where `source` says."""
  height, width, _ = image.shape

  def at(y, x):
    inside = 0 <= y < height and 0 <= x < width
    return image[y, x].astype(float) if inside else np.array(fill, float)

  result = np.zeros(image.shape)
  for row, column in np.ndindex(height, width):
    x, y = source(name, value, column + 0.5, row + 0.5, width, height)
    if interpolation == 'nearest':
      result[row, column] = at(int(np.floor(y)), int(np.floor(x)))
      continue
    left, top = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
    for yy in (top, top + 1):
      for xx in (left, left + 1):
        weight = (1 - abs(y - 0.5 - yy)) * (1 - abs(x - 0.5 - xx))
        result[row, column] += weight * at(yy, xx)
  return result
