"""Trained networks to be shared: one directory, or one file, that says all.

  awconv_jax.save_pretrained('runs/digits', 'models/digits')
  model = awconv_jax.from_pretrained('models/digits')

The directory has `model.safetensors`, whose metadata hold all that loads it;
the same as `config.json`, for readers; and `README.md`, a model card. The
weights have torch's names and layout. `weights.described` lists what is held.
"""

from collections.abc import Mapping
import importlib
import json
import os
from typing import Any

from awconv_jax import inference, model_card, places, weights
from awconv_jax.errors import InputError
from awconv_jax.options import any_path
from awconv_jax.train import checkpoint, logging, rundir
from awconv_jax.weights import described
from awconv_jax.weights.located import CARD, CONFIG, MODEL

load = from_pretrained = inference.load


def save_pretrained(
    model: inference.Model | str | os.PathLike,
    directory: str | os.PathLike,
    *,
    dtype: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
  """Writes a trained network as a directory, or as one .safetensors file.

  Args:
    model: of `inference.load`, or what that takes.
    directory: is made; a model that is there is replaced. With the suffix
      .safetensors it is a file; with another it is refused.
    dtype: of kernels and matrices in the file, such as 'bfloat16'; theirs.
    metrics: by name, as of `tools.evaluate`, for the model card, which takes
      the numbers; the last evaluation of a run.

  Raises:
    InputError: the place holds something else, or cannot be written.
  """
  if not isinstance(model, inference.Model):
    model = inference.load(model)
  target = places.at(any_path(directory))
  suffix = places.suffix_to_write(target, weights.WRITERS)
  description = describe(model, metrics)
  if suffix:
    if target.name == MODEL and (target.parent / CONFIG).exists():
      raise InputError(
          f'{target} would be of another model than the {CONFIG} beside it; '
          f'give {target.parent}, or another place'
      )
    weights.save(target, model.variables, description=description, dtype=dtype)
    return
  held = {path.name for path in target.iterdir()} if target.is_dir() else set()
  if held and MODEL not in held:
    raise InputError(
        f'{target} holds something else than a model; give another place'
    )
  made = not target.exists()
  target.mkdir(parents=True, exist_ok=True)
  file = target / MODEL
  try:
    weights.save(file, model.variables, description=description, dtype=dtype)
  except InputError:
    if made and not places.in_bucket(target):
      target.rmdir()
    raise
  (target / CONFIG).unlink(missing_ok=True)  # It belongs to what is replaced.
  told: Any = weights.describe(str(file))
  rundir.write(target / CONFIG, json.dumps(told, indent=2) + '\n')
  rundir.write(
      target / CARD, model_card.text(told, model.variables, dtype or 'float32')
  )


def describe(
    model: inference.Model, metrics: Mapping[str, float] | None = None
) -> dict[str, Any]:
  """Returns the description of a model, yet without its digest.

  The arguments are as in `save_pretrained`.
  """
  told, categories = weights.describe(model.source) or {}, model.kept_categories
  own, known = _has_own_config(model), {}
  if own:  # What was measured with another config is not told.
    known = told.get('metrics') or _evaluated(model.source)
  return {
      'format': described.FORMAT,
      'version': importlib.import_module('awconv_jax').__version__,
      'config': model.config.to_dict(),
      'classes': model.kept_names,
      'categories': categories and [dict(id=i, name=n) for i, n in categories],
      'weights': model.weights,
      'origin': told.get('origin', _origin(model.source)),
      'metrics': _shown(metrics or {}) or known,
      'commit': (
          told.get('commit') or _trained_at(model.source) if own else None
      ),
  }


def _has_own_config(model: inference.Model) -> bool:
  """Returns whether nothing was changed that its source was measured with."""
  try:
    held = rundir.read_config(model.source)
  except InputError:  # Weights alone.
    return False
  return not rundir.differences(held, model.config)


def _trained_at(source: str) -> str | None:
  """Returns the commit that a run was trained at last, if it is known."""
  records = checkpoint.records(places.at(source) / rundir.CHECKPOINTS)
  return records[-1].get('commit') if records else None


def _origin(source: str) -> str | None:
  """Returns the name of a file that others wrote; None of a run of ours."""
  path = places.at(source)
  return path.name if path.is_file() else None


def _shown(metrics: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the numbers, and what they were measured on."""
  return {
      name: value
      for name, value in metrics.items()
      if isinstance(value, int | float) or name in ('data', 'split')
  }


def _evaluated(workdir: str) -> dict[str, Any]:
  """Returns the last evaluation of a run, and its step, if there is one."""
  path = places.at(workdir) / 'metrics.jsonl'
  rows, found = logging.read(path) if path.exists() else (), {}
  for row in rows:
    if scores := {k: v for k, v in row.items() if k.startswith('eval/')}:
      found = {'step': row['step']} | scores
  return found
