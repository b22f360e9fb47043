"""Tiny originals of data sets, in the form in which their makers give them.

The real builders of TFDS run on them without a network.
"""

import io
import pathlib
import tarfile

import pictures

# A few of the 1000, with their labels; in the order of TFDS.
SYNSETS = {'n01440764': 0, 'n01739381': 59, 'n02105855': 230}


def image(seed: int, kind: str = 'JPEG') -> bytes:
  """Returns an encoded image of 60 x 80 pixels, always the same."""
  return pictures.encode(pictures.smooth(60, 80, seed), kind)


def tar(files: dict[str, bytes]) -> bytes:
  """Returns an archive of files by name."""
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode='w') as archive:
    for name, content in files.items():
      entry = tarfile.TarInfo(name)
      entry.size = len(content)
      archive.addfile(entry, io.BytesIO(content))
  return out.getvalue()


def imagenet_train(per_class: int) -> dict[str, dict[str, bytes]]:
  """Returns the training images by synset and name."""
  return {
      synset: {
          f'{synset}_{i}.JPEG': image(1000 * label + i)
          for i in range(1, per_class + 1)
      }
      for synset, label in SYNSETS.items()
  }


def write_imagenet(directory: pathlib.Path, per_class=4, val=10) -> None:
  """Writes the two archives of ILSVRC2012 as image-net.org gives them."""
  directory.mkdir(parents=True, exist_ok=True)
  train = {f'{s}.tar': tar(f) for s, f in imagenet_train(per_class).items()}
  (directory / 'ILSVRC2012_img_train.tar').write_bytes(tar(train))
  # Not in the order of the names: the builder sorts, to find the labels.
  images = {
      f'ILSVRC2012_val_{i:08}.JPEG': image(5_000_000 + i)
      for i in range(val, 0, -1)
  }
  (directory / 'ILSVRC2012_img_val.tar').write_bytes(tar(images))


def serve(monkeypatch, directory: pathlib.Path, files: dict[str, bytes]):
  """Has TFDS find files, by the end of their URL, instead of downloading.

  Any other URL fails the test: nothing is asked of the network.
  """
  from tensorflow_datasets.core.download import download_manager

  directory.mkdir(parents=True, exist_ok=True)

  def download(self, url):
    name = url.rpartition('/')[2]
    assert name in files, f'TFDS wants to download {url}'
    (directory / name).write_bytes(files[name])
    return directory / name

  def extract(self, urls):
    if isinstance(urls, str):
      return self.extract(download(self, urls))
    return {key: extract(self, url) for key, url in urls.items()}

  manager = download_manager.DownloadManager
  monkeypatch.setattr(manager, 'download', download)
  monkeypatch.setattr(manager, 'download_and_extract', extract)


def write_folder(directory: pathlib.Path, splits: dict[str, int]) -> None:
  """Writes a folder of images, so many per class by split."""
  for number, (split, count) in enumerate(splits.items()):
    for label, name in enumerate(('cat', 'dog')):
      folder = directory / split / name
      folder.mkdir(parents=True, exist_ok=True)
      for i in range(count):
        content = image(1000 * number + 100 * label + i)
        (folder / f'{i}.jpg').write_bytes(content)
