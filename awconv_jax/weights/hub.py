"""Models on the Hugging Face hub: `hf-hub:owner/name`, with a revision or not.

`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE` are huggingface_hub's.
"""

from collections.abc import Sequence
import os
import pathlib
import re
from typing import Any

from awconv_jax.errors import InputError, first_line

PREFIX = 'hf-hub:'


def _library() -> Any:
  try:
    import huggingface_hub
  except ImportError as error:
    raise InputError(
        f"{PREFIX} needs {error.name!r}: pip install 'awconv_jax[hub]'"
    ) from error
  return huggingface_hub


def opened(name: str) -> Any:
  """Returns huggingface_hub; InputError if it is absent, or this no name."""
  if not re.fullmatch(r'[\w-][\w.-]*/[\w-][\w.-]*', name):
    raise InputError(f'{name!r} names no model on the hub; want owner/name')
  return _library()


def fetch(source: str, files: Sequence[str]) -> pathlib.Path:
  """Returns the directory that has these of 'hf-hub:owner/name[@revision]'.

  It is huggingface_hub's cache, where what was fetched once stays.

  Raises:
    InputError: there is no such model, or no way to it.
  """
  name, _, revision = source.removeprefix(PREFIX).partition('@')
  library = opened(name)
  try:
    found = library.snapshot_download(
        name,
        revision=revision or None,
        allow_patterns=files,
        endpoint=os.environ.get('HF_ENDPOINT'),
    )
  except Exception as error:  # Of the hub, of HTTP, of the disk.
    raise _told(source, error) from error
  return pathlib.Path(found)


def push(
    directory: str | os.PathLike,
    name: str,
    files: Sequence[str],
    private: bool = False,
) -> str:
  """Uploads these of a directory as 'owner/name', and returns its address.

  The model is made if it is not there; its other files stay.

  Raises:
    InputError: it may not be written, or there is no way to it.
  """
  api = opened(name).HfApi(endpoint=os.environ.get('HF_ENDPOINT'))
  try:
    url = api.create_repo(name, private=private, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=directory, allow_patterns=files)
  except Exception as error:
    raise _told(name, error) from error
  return str(url)


def _told(name: str, error: Exception) -> InputError:
  return InputError(
      f'{name!r} on the hub: {type(error).__name__}: {first_line(error)}; look '
      'at the name, the network, and for private models at `hf auth login`'
  )
