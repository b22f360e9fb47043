"""Where a trained network lies: every name that one may be given by.

runs/digits, gs://bucket/runs/digits     a run
models/digits, models/digits.safetensors what `save_pretrained` wrote
digits                                   a model that the package ships
hf-hub:owner/name, hf-hub:owner/name@v1  a model on the Hugging Face hub
"""

import os
import pathlib

from awconv_jax import places
from awconv_jax.options import any_path
from awconv_jax.weights import hub

# Of the directory of a model.
FILES = MODEL, CONFIG, CARD = 'model.safetensors', 'config.json', 'README.md'
CHECKPOINTS = 'checkpoints'  # Of that of a run, which has a CONFIG, too.
SHIPPED = pathlib.Path(__file__).parent.parent / 'shipped'


def shipped() -> list[str]:
  """Returns the names of the models that the package ships."""
  return sorted(path.parent.name for path in SHIPPED.glob(f'*/{MODEL}'))


def locate(source: str | os.PathLike) -> str:
  """Returns the path of a file of weights, or of a run, which may be absent.

  A path that holds a model or a run comes before a shipped model of its name.

  Raises:
    InputError: the hub does not have it, or no path can be so called.
  """
  text = os.fspath(source)
  if text.startswith(hub.PREFIX):
    return str(hub.fetch(text, FILES) / MODEL)
  path = places.at(any_path(text))
  if (path / MODEL).exists():
    return str(path / MODEL)
  is_run = (path / CONFIG).exists() or (path / CHECKPOINTS).exists()
  if not is_run and not path.is_file() and text in shipped():
    return str(SHIPPED / text / MODEL)
  return any_path(text)
