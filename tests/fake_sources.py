"""Photos and folders of them."""

import pathlib

import pictures


def image(seed: int, kind: str = 'JPEG') -> bytes:
  """Returns an encoded image of 60 x 80 pixels, always the same."""
  return pictures.encode(pictures.smooth(60, 80, seed), kind)


def write_folder(directory: pathlib.Path, splits: dict[str, int]) -> None:
  """Writes a folder of images, so many per class by split."""
  for number, (split, count) in enumerate(splits.items()):
    for label, name in enumerate(('cat', 'dog')):
      folder = directory / split / name
      folder.mkdir(parents=True, exist_ok=True)
      for i in range(count):
        content = image(1000 * number + 100 * label + i)
        (folder / f'{i}.jpg').write_bytes(content)
