r"""Shows what is on images, by a trained classifier or detector.

  python -m awconv_jax.tools.predict --run=runs/digits --input=photo.jpg
  python -m awconv_jax.tools.predict --run=runs/coco --input=photos --output=out
  find . -name '*.jpg' | python -m awconv_jax.tools.predict \
      --run=runs/coco --input=- --output=found.csv
  python -m awconv_jax.tools.predict --run=runs/digit_scenes --output=out
  python -m awconv_jax.tools.predict --run=detector.pth --input=photos \
      --config=configs/coco.py:preset=torchvision,num_classes=90,aw_conv=false

A line is printed for each file, with the --top classes and their probabilities,
or the boxes whose score is at least --score. Images are upright, as their EXIF
data say. Without --input the run's own eval split is looked at, of which the
metrics are printed, and no line of an image.

Where --output is a file, it gets
  .csv         a row for each class, or box, of each image
  .jsonl       the same, a line for each image
  .png, .jpg   a contact sheet: a picture for each of --max_images images
A directory gets all three, as predictions.csv and .jsonl and contact_sheet.png,
and of the eval split metrics.json. Of a detector there are, besides,
  results.json       every detection in COCO's format, whatever its score
  ground_truth.json  of the eval split
  metrics.txt        COCO's average precision and recall, and the AP of every
                     category; -1 ('n/a') where the split has no such objects
  images.json        of files instead: which of them each image_id is
  pictures/          larger ones than the sheet's; the boxes of the ground truth
                     are white

A file that cannot be read is named, here and in the outputs; the others are
looked at all the same, and in the end the exit code is 1. The newest checkpoint
is used, the averages where the run has them.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import pathlib
import types
from typing import Any

from absl import flags
import jax
import numpy as np
from tqdm import tqdm

from awconv_jax import command_line, inference, places
from awconv_jax.data import any_image, workers
from awconv_jax.errors import InputError, one_line
from awconv_jax.options import MOST
from awconv_jax.tools import (
    contact_sheet,
    evaluate,
    image_files,
    prediction_files,
)
from awconv_jax.tools.task_reports import REPORTS, Seen
from awconv_jax.train import partition, rundir
from awconv_jax.weights.located import MODEL

FLAGS = flags.FLAGS
_TILES = 100  # Of a contact sheet at most; more could not be looked at.
_SIDE = 1600  # Pixels of a picture's longer side at most.
TABLES = {
    '.csv': prediction_files.csv_rows,
    '.jsonl': prediction_files.json_lines,
}
PICTURES = '.png', '.jpg', '.jpeg'


def _files(
    model: inference.Model, files: Sequence[str], flip
) -> Iterator[Seen]:
  """Yields what is on files."""
  workers.settle_opencv()
  size = min(model.config.eval_batch_size, len(files))
  results = model.stream(files, batch_size=size, flip=flip)
  for number, (path, result) in enumerate(zip(files, results, strict=True), 1):
    pixels = functools.partial(any_image.pixels_of, path, model.channels)
    yield Seen(number, path, result, pixels, {})


def _split(
    model: inference.Model,
    batches: Any,
    flip: bool,
    update: Callable[..., None],
) -> Iterator[Seen]:
  """Yields what is on the eval split; hands outputs on to be evaluated."""
  number, mesh = 0, partition.create_mesh()
  predict = functools.partial(model.outputs, flip=flip)
  task = types.SimpleNamespace(predict=predict)
  with jax.set_mesh(mesh):
    for batch, outputs in evaluate.predictions(model, batches, task, mesh):
      update(outputs)
      for place in np.flatnonzero(batch['mask']):
        number += 1
        row = {name: array[place] for name, array in outputs.items()}
        # As COCO's files are called.
        name = f'{row["image_id"]:012}' if 'image_id' in row else None
        name = name or batches.place(int(row['index']))
        pixels = functools.partial(np.asarray, batch['image'][place])
        yield Seen(number, name, model.result(row), pixels, row)


def _places(output: str | None) -> tuple[pathlib.Path | None, dict[str, Any]]:
  """Returns the directory to write to, if it is one, and files by suffix.

  Raises:
    InputError: it is a file of no known kind, or cannot be written.
  """
  if output is None:
    return None, {}
  path = places.at(output)
  if suffix := places.suffix_to_write(path, (*TABLES, *PICTURES)):
    command_line.check_output(output)
    return None, {suffix: path}
  for name in (MODEL, rundir.CHECKPOINTS):
    if (path / name).exists():
      raise InputError(
          f'--output={output!r} holds a model or a run; name another place'
      )
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    reason = error.strerror or error
    raise InputError(
        f'--output={output!r}: {reason}; name another place'
    ) from error
  tables = {suffix: path / f'predictions{suffix}' for suffix in TABLES}
  return path, tables | {'.png': path / 'contact_sheet.png'}


def run(
    config: Any,
    workdir: str,
    output: str | None = None,
    *,
    inputs: Sequence[str] = (),
    flip: bool = False,
    top: int = 5,
    score: float = 0.3,
    max_images: int = 16,
) -> dict[str, Any]:
  """Looks at images, and writes what the module's docstring lists.

  Args:
    config: of the run, as of `evaluate.choose`.
    workdir: of the run; or a file that `weights.read` takes.
    output: directory or file to write to, if any.
    inputs: files and folders, and '-' for a list of files on standard input; if
      there are none, the eval split is looked at.
    flip: whether every image is looked at mirrored, too.
    top: classes told of each image.
    score: least score of a box that is told and drawn.
    max_images: pictures at most, evenly spread over all images.

  Returns:
    The metrics, of a detector with the AP of each category under 'per_class';
    nothing for files.

  Raises:
    InputError: the run cannot be used, or, once all others are written, some
      of the files.
  """
  files = image_files.find(inputs)
  model: Any = inference.load(workdir, config)
  new_report = functools.partial(REPORTS[config.task.name], top, score)
  if files:
    report = new_report(model.names, model.category_ids)
    total, images = len(files), _files(model, files, flip)
  else:
    batches = evaluate.eval_batches(model)
    report = new_report(batches.class_names, batches.category_ids)
    total = batches.num_examples
    images = _split(model, batches, flip, report.update)
  folder, paths = _places(output)
  image_files.check_outputs(files, paths.values())
  print(f'{model.weights}; {total:,} image{"s" * (total != 1)} to look at')
  if flip and config.data.get('flip') == 0:
    print('--flip: this run never saw mirrored images (config.data.flip=0)')

  pictures = contact_sheet.Spread(total, max_images if folder else 0)
  sheet = [path for suffix, path in paths.items() if suffix in PICTURES]
  on_sheet = contact_sheet.Spread(total, min(max_images, _TILES) * len(sheet))
  tiles, count, broken = [], 0, 0
  bar: Any = tqdm(images, total=total, unit=' images', disable=None)
  with contextlib.ExitStack() as stack:
    tables = [
        stack.enter_context(TABLES[suffix](path, report.columns))
        for suffix, path in paths.items()
        if suffix in TABLES
    ]
    more = stack.enter_context(report.outputs(folder, bool(files)))
    for seen in bar:
      record = {'file': seen.name}
      if isinstance(seen.result, InputError):
        broken += 1
        record['error'] = str(seen.result)
        line = f'{seen.name} cannot be read: {seen.result}'
      else:
        count += 1
        record |= report.record(seen)
        line = f'{seen.name}: {report.text(record["found"])}'
        more(seen)
        if pictures(seen.number):
          report.draw(seen, folder, _SIDE)
        if on_sheet(seen.number):
          tiles.append(report.tile(seen, record))
      if files:
        tqdm.write(one_line(line))
      for write in tables:
        write(record)
  if not count:
    raise InputError(f'no image can be read, of {total:,}; each is named above')
  for path in sheet * bool(tiles):
    with places.for_writing(path) as local:
      contact_sheet.make(tiles, report.side).save(local)
  if broken:
    where = f'; the others are in {output}' if output else ''
    raise InputError(
        f'{broken:,} of {total:,} files cannot be read, each is named above'
        f'{where}'
    )
  if count < total:
    print(f'{count:,} of {total:,} images, the others cannot be read')
  return {} if files else report.metrics(folder)


def main() -> None:
  """Looks at images as the flags say."""
  options = command_line.given('flip', 'top', 'score', 'max_images')
  chosen = evaluate.chosen()
  metrics = run(*chosen, FLAGS.output, inputs=FLAGS.input, **options)
  if metrics:
    print(evaluate.table(metrics))
  if FLAGS.output:
    print(f'results are in {FLAGS.output}')


if __name__ == '__main__':
  evaluate.define_flags()
  flags.adopt_module_key_flags(evaluate)  # So that --help lists them.
  text = 'Directory, or file .csv, .jsonl, .png or .jpg, to write to.'
  command_line.define_path('output', text)
  flags.DEFINE_multi_string(
      'input',
      [],
      'Image file or folder; may be given several times; - reads a list of '
      'files, one a line.',
  )
  default: Any = run.__kwdefaults__
  flags.DEFINE_bool('flip', default['flip'], 'Look at images mirrored, too.')
  text = 'Classes told of each image.'
  flags.DEFINE_integer('top', default['top'], text, 1, MOST)
  text = 'Least score of a box that is told and drawn.'
  flags.DEFINE_float('score', default['score'], text, 0.0, 1.0)
  flags.register_validator('score', lambda score: score == score, 'no number')
  text = 'Pictures drawn at most; all images are looked at, see --split.'
  flags.DEFINE_integer('max_images', default['max_images'], text, 0, MOST)
  command_line.run(main)
