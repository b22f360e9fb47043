r"""Detects objects with a trained run: results as JSON, pictures, COCO's table.

  python -m awconv_jax.tools.predict --run=runs/digit_scenes --output=out
  python -m awconv_jax.tools.predict --run=runs/coco --input=photos --output=out
  python -m awconv_jax.tools.predict --run=runs/coco --flip --max_images=0 \
      --output=out
  python -m awconv_jax.tools.predict --run=detector.pth --input=photos \
      --config=configs/coco.py:preset=torchvision,num_classes=90,aw_conv=false \
      --output=out

Without --input the run's own eval split is looked at. The output directory gets
  results.json       every detection in COCO's format, in pixels of the file
                     (of --input, once a camera's EXIF data have turned it)
  ground_truth.json  of the eval split
  metrics.json, .txt COCO's average precision and recall, and the AP of every
                     category; -1 ('n/a') where the split has no such objects
  images.json        of files instead: which of them each image_id is
  pictures/          with the boxes whose score is at least --score; those of
                     the ground truth are white

The newest checkpoint is used, the averages where the run has them.
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

from absl import flags
import jax
import numpy as np
from PIL import Image

from awconv_jax import command_line, inference
from awconv_jax.errors import InputError
from awconv_jax.evaluators.coco import CocoEvaluator
from awconv_jax.tools import draw_boxes, evaluate, image_files
from awconv_jax.train import partition
from awconv_jax.train import step as train_step

FLAGS = flags.FLAGS


def table(metrics: Mapping[str, Any]) -> str:
  """Returns what `run` returned as text."""
  rows = [(k, v) for k, v in metrics.items() if k != 'per_class']
  # Two categories may have one name.
  rows += [(f'AP of {c["name"]}', c['AP']) for c in metrics['per_class']]
  return evaluate.table(rows)


def _detect(predictor, variables, batches):
  """Yields each image, and what is predicted for it."""
  mesh = partition.create_mesh()
  with jax.set_mesh(mesh):
    predict = train_step.create_predict(predictor, mesh)
    for batch in batches:
      outputs = predict(variables, partition.shard_batch(mesh, batch))
      outputs = jax.device_get(outputs)
      for row in np.flatnonzero(batch['mask']):
        one = {name: array[row] for name, array in outputs.items()}
        yield batch['image'][row], one


def _write_picture(folder, files, image_id, picture) -> None:
  # As COCO's files are called; or with the number, as files in two folders may
  # have one name.
  stem = f'{image_id:012}'
  if files:
    stem = f'{image_id:06}_{pathlib.Path(files[image_id - 1]).stem}'
  Image.fromarray(picture).save(folder / 'pictures' / f'{stem}.png')


def run(
    config: Any,
    workdir: str,
    output: str,
    *,
    inputs: Sequence[str] = (),
    flip: bool = False,
    score: float = 0.3,
    max_images: int = 16,
) -> dict[str, Any]:
  """Detects, and writes what the module's docstring lists.

  Args:
    config: of the run, as of `evaluate.choose`.
    workdir: of the run; or a file that `weights.read` takes.
    output: directory to write to.
    inputs: files and folders; if none, the eval split.
    flip: whether every image is looked at mirrored, too.
    score: least score of a box that is drawn.
    max_images: pictures at most, evenly spread over all images.

  Returns:
    The metrics, with the AP of each category under 'per_class'; nothing for
    files.

  Raises:
    InputError: the run, the images or the directory cannot be used.
  """
  if config.task.name != 'detection':
    raise InputError(
        f'--run={workdir} is a run of {config.task.name}; boxes are predicted '
        'by runs of detection'
    )
  files = image_files.find(inputs) if inputs else []
  folder = pathlib.Path(output)
  try:  # Before anything that takes long.
    (folder / 'pictures').mkdir(parents=True, exist_ok=True)
  except OSError as error:
    reason = f'cannot write to --output={output}: {error.strerror}'
    raise InputError(reason) from error
  model: Any = inference.load(workdir, config)
  if files:
    source = image_files.ImageFiles(files, *model.categories)
    batches = image_files.batches(source, config)
  else:
    batches = evaluate.eval_batches(model)
  total = batches.num_examples
  print(f'{model.weights}, {total:,} images')
  if flip and not config.data.flip:
    print('--flip: this run never saw mirrored images (config.data.flip=0)')

  evaluator = CocoEvaluator(batches.category_ids, batches.class_names)
  # The last image of each of so many parts of equal length.
  parts = min(max_images, total)
  drawn = {-(-total * part // parts) - 1 for part in range(1, parts + 1)}
  found = _detect(model.predictor(flip), model.variables, batches)
  names, count = batches.class_names, 0
  for count, (image, one) in enumerate(found, start=1):
    evaluator.update({name: array[None] for name, array in one.items()})
    if count - 1 in drawn:
      picture = draw_boxes.draw(image, one, names, score)
      _write_picture(folder, files, int(one['image_id']), picture)
  for line in batches.unreadable.news():
    print(line)
  if not count:
    raise InputError(f'no image can be read, of {total:,}; each is named above')
  return _write(folder, files, evaluator)


def _write(folder, files, evaluator: CocoEvaluator) -> dict[str, Any]:
  """Writes everything but the pictures, and returns the metrics."""
  dataset, metrics = evaluator.dataset(), {}
  categories = dataset['categories']
  contents = {'results': evaluator.results()}
  if files:
    for image in dataset['images']:
      image['file_name'] = files[image['id'] - 1]
    contents['images'] = dict(images=dataset['images'], categories=categories)
  else:
    ap = evaluator.per_class()
    per_class = [
        {'category_id': c['id'], 'name': c['name'], 'AP': ap[c['id']]}
        for c in categories
    ]
    metrics = {**evaluator.compute(), 'per_class': per_class}
    contents |= {'ground_truth': dataset, 'metrics': metrics}
    (folder / 'metrics.txt').write_text(f'{table(metrics)}\n')
  for name, content in contents.items():
    (folder / f'{name}.json').write_text(json.dumps(content))
  return metrics


def main() -> None:
  """Detects as the flags say."""
  options = {k: FLAGS[k].value for k in ('flip', 'score', 'max_images')}
  options['inputs'] = FLAGS.input
  config = evaluate.chosen_config()
  metrics = run(config, FLAGS.run, FLAGS.output, **options)
  if metrics:
    print(table(metrics))
  print(f'results.json and pictures are in {FLAGS.output}')


if __name__ == '__main__':
  evaluate.define_flags()
  flags.adopt_module_key_flags(evaluate)  # So that --help lists them.
  text = 'Directory to write to.'
  flags.DEFINE_string('output', None, text, required=True)
  flags.DEFINE_multi_string(
      'input', [], 'Image file or folder; may be given several times.'
  )
  flags.DEFINE_bool('flip', False, 'Look at every image mirrored, too.')
  flags.DEFINE_float(
      'score', 0.3, 'Least score of a box that is drawn.', 0.0, 1.0
  )
  flags.DEFINE_integer(
      'max_images', 16, 'Pictures drawn at most.', lower_bound=0
  )
  command_line.run(main)
