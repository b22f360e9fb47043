"""What a file of weights says of itself: all that loads it again.

`awconv_jax.pretrained` writes it, into the metadata of a .safetensors file and
the same into the config.json beside it:

  format: of what follows, `FORMAT`.
  version: of awconv_jax that wrote it.
  config: the whole config, as of `train.settings`: data, task, network, ...
  classes, categories: as in a run; None where it has none.
  weights: which they are, such as 'averages of step 400'.
  origin: name of the file of others that they are from; None of our runs.
  metrics, commit: of the run, and of the code that trained it, where known.
  sha256: of all this, and of the arrays.
"""

from collections.abc import Mapping
import functools
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from awconv_jax import places
from awconv_jax.errors import InputError, first_line, of_the_system
from awconv_jax.weights.located import CONFIG, MODEL

FORMAT = 1
# Of the metadata of a file.
KEY = 'awconv_jax'


def sealed(
    description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Returns the description with the digest of itself and of the arrays."""
  told = {k: v for k, v in description.items() if k != 'sha256'}
  told = json.loads(json.dumps(told))  # As it comes back from a file.
  digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
  for name in sorted(arrays):
    array = arrays[name]
    digest.update(f'{name} {array.dtype} {[*array.shape]}\n'.encode())
    digest.update(array.tobytes())
  return told | {'sha256': digest.hexdigest()}


def parsed(metadata: Mapping[str, str] | None) -> dict[str, Any]:
  """Returns what a file's metadata hold; ValueError if they are damaged.

  It is empty where nothing was written; files before there were descriptions
  have some options of their network alone.
  """
  told = json.loads((metadata or {}).get(KEY, '{}'))
  if not isinstance(told, dict):
    raise ValueError(f'its {KEY!r} is no description of a model')
  return told


def check(told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
  """Raises ValueError if either is not what was saved."""
  if 'sha256' in told and sealed(told, arrays) != told:
    raise ValueError('it was changed after it was saved, by its sha256')


def describe(path: str) -> dict[str, Any] | None:
  """Returns a file's description; None of what has none, such as a run.

  Raises:
    InputError: it is of a later format, or not that beside it.
  """
  there = places.at(path)
  if there.suffix.lower() != '.safetensors' or not there.is_file():
    return None
  return _describe(path, places.stamp(path))


@functools.lru_cache(maxsize=4)  # In a bucket, the whole file is fetched.
def _describe(path: str, stamp: Any) -> dict[str, Any] | None:
  import safetensors

  del stamp
  try:
    with places.for_reading(path) as file:
      with safetensors.safe_open(file, 'numpy') as opened:
        told = parsed(opened.metadata())
  except Exception as error:
    if of_the_system(error):
      raise
    reason = f'{path} cannot be read: {first_line(error)}'
    raise InputError(f'{reason}; fetch it again') from error
  if 'sha256' not in told:
    return None
  if told.get('format') != FORMAT:
    raise InputError(
        f'{path} is of format {told.get("format")!r}, by awconv_jax '
        f'{told.get("version")!r}, want {FORMAT}; install that version'
    )
  _compare(places.at(path), told)
  return told


def _compare(path: pathlib.Path, told: Mapping[str, Any]) -> None:
  """Raises InputError if config.json is there and says something else."""
  beside = path.with_name(CONFIG)
  if path.name != MODEL or not beside.exists():
    return
  try:
    same = json.loads(beside.read_text(encoding='utf-8')) == told
  except (ValueError, RecursionError):
    same = False
  if not same:
    raise InputError(
        f'{beside} was changed after it was saved, or is of another model than '
        f'{MODEL}; fetch both again, or save the model again'
    )
