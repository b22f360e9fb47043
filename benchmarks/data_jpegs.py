"""Makes a folder of JPEGs of about the sizes that those of ImageNet have.

They are random parts of the two photographs that come with scikit-learn, so
that no data set need be at hand. Sizes in pixels and in bytes are typical ones
of ImageNet's files (500 x 375 most often, 110 kB on average); their mixture is
ours.
"""

import dataclasses
import os

import cv2
import numpy as np

# (width, height), and how many of 20 images have it.
SIZES = {
    (500, 375): 9,
    (375, 500): 3,
    (500, 333): 3,
    (333, 500): 1,
    (500, 400): 1,
    (400, 300): 1,
    (640, 480): 1,
    (1024, 768): 1,
}
# With these two the files have 110 kB on average.
QUALITY = 96
# Of the noise, of 255: photographs that were shrunk and enlarged lack it.
NOISE = 3.0
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Folder:
  """A folder of images, for `data.create` as 'folder:<path>'.

  Attributes:
    path: of the folder, which holds train/<class>/<file>.
    files: all of them.
    kilobytes: mean size of a file, 1e3 bytes.
    pixels: mean number of pixels, 1e6.
  """

  path: str
  files: tuple[str, ...]
  kilobytes: float
  pixels: float

  def __str__(self):
    return (
        f'{len(self.files)} JPEGs, on average {self.kilobytes:.1f} kB and '
        f'{1e3 * self.pixels:.0f} thousand pixels'
    )


def _cut(
    photograph: np.ndarray, width: int, height: int, rng: np.random.Generator
) -> np.ndarray:
  """Returns a random part of a photograph, uint8 [height, width, 3]."""
  most = min(photograph.shape[0] / height, photograph.shape[1] / width)
  factor = most * rng.uniform(0.6, 1.0)
  size = int(height * factor), int(width * factor)
  top, left = (
      rng.integers(0, whole - part + 1)
      for whole, part in zip(photograph.shape[:2], size, strict=True)
  )
  part = photograph[top : top + size[0], left : left + size[1]]
  image = cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC)
  noisy = image + rng.normal(0, NOISE, image.shape)
  return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def write(path: str, number: int) -> Folder:
  """Writes that many JPEGs; always the same.

  Args:
    path: of the folder, which is there and empty.
    number: of images.
  """
  from sklearn import datasets  # Here, as reading images needs none of it.

  photographs = datasets.load_sample_images().images
  sizes = [size for size, times in SIZES.items() for _ in range(times)]
  options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
  files, bytes_, pixels = [], 0, 0
  for i in range(number):
    rng = np.random.default_rng(i)
    width, height = sizes[i % len(sizes)]
    photograph = photographs[i // len(sizes) % len(photographs)]
    image = _cut(photograph, width, height, rng)
    encoded = cv2.imencode('.jpg', image[..., ::-1], options)[1].tobytes()
    folder = os.path.join(path, 'train', f'class{i % CLASSES}')
    os.makedirs(folder, exist_ok=True)
    files.append(os.path.join(folder, f'{i:05}.jpg'))
    with open(files[-1], 'wb') as file:
      file.write(encoded)
    bytes_ += len(encoded)
    pixels += width * height
  return Folder(
      path, tuple(files), bytes_ / number / 1e3, pixels / number / 1e6
  )
