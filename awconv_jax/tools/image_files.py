"""The image files that a user names."""

from collections.abc import Iterable, Sequence
import contextlib
import os
import pathlib
import sys

from awconv_jax.data.folder_source import (
    EXTENSIONS,
    files_below,
    is_image,
    left_out_line,
)
from awconv_jax.errors import InputError, one_line
from awconv_jax.options import local_path

_LIST = '-'


def find(inputs: Sequence[str]) -> list[str]:
  """Returns the image files that are named or lie in named folders.

  Args:
    inputs: files, which are taken whatever their names are, and folders, which
      are searched with all that is in them, by links, too; all of these are
      sorted. '-' is a list of files, one a line, on standard input; they follow
      in their order, and whether they are there is seen once they are read.

  Raises:
    InputError: one of them is not there, or holds no image.
  """
  files, left_out, listed = set(), [], []
  if _LIST in inputs:
    inputs = [name for name in inputs if name != _LIST]
    lines = map(os.fsdecode, sys.stdin.buffer.read().splitlines())
    listed = [line for line in lines if line]
    if not listed:
      raise InputError('--input=-: there is no line on standard input')
  for path in map(pathlib.Path, map(local_path, inputs)):
    inside = list(files_below(os.fsencode(path))) if path.is_dir() else []
    images = set(filter(is_image, inside))
    left_out += [file for file in inside if file not in images]
    if not images and not path.is_file():
      kinds = ' '.join(sorted(EXTENSIONS))
      raise InputError(
          f'--input={str(path)!r} is no file and holds none of {kinds}'
      )
    files |= images or {os.fsencode(path)}
  for line in left_out_line(left_out):
    print(line)
  return sorted(map(os.fsdecode, files)) + listed


def check_outputs(files: Sequence[str], outputs: Iterable[str | os.PathLike]):
  """Raises InputError if an output would replace one of these image files."""
  for output in filter(os.path.exists, outputs):
    for file in files:
      with contextlib.suppress(OSError):  # One of a list may not be there.
        if os.path.samefile(file, output):
          raise InputError(
              f'--output: {one_line(os.fspath(output))} would replace --input='
              f'{file!r}; name another place'
          )
