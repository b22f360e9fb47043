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

from awconv_jax import command_line, data, inference
from awconv_jax.errors import InputError
from awconv_jax.evaluators.coco import CocoEvaluator
from awconv_jax.tools import evaluate, image_files
from awconv_jax.tools.pictures import Pictures
from awconv_jax.train import partition
from awconv_jax.train import step as train_step

FLAGS = flags.FLAGS


def create_batches(model: inference.Detector, files: Sequence[str]) -> Any:
  """Returns batches of files, or of the eval split if there are none.

  Args:
    model: that looks at them.
    files: paths of images.

  Raises:
    InputError: the images cannot be used, or are of other classes.
  """
  config = model.config
  size = config.eval_batch_size
  if files:
    source = image_files.ImageFiles(files, *model.categories)
    return image_files.batches(source, config.data, size)
  batches = data.create(
      config.data, train=False, batch_size=size, seed=config.seed
  )
  evaluate.check_classes(model, batches)
  return batches


def detect(
    model: inference.Detector, flip: bool, batches: Any, pictures: Pictures
) -> CocoEvaluator:
  """Looks at every image once.

  Args:
    model: that looks at them.
    flip: whether every image is looked at mirrored, too.
    batches: as of `create_batches`.
    pictures: takes what is to be drawn.

  Returns:
    An evaluator that holds the detections, and the ground truth if any.

  Raises:
    InputError: not one image can be read.
  """
  evaluator = CocoEvaluator(batches.category_ids, batches.class_names)
  mesh = partition.create_mesh()
  place = 0
  with jax.set_mesh(mesh):
    predict = train_step.create_predict(model.predictor(flip), mesh)
    for batch in batches:
      outputs = predict(model.variables, partition.shard_batch(mesh, batch))
      outputs = jax.device_get(outputs)
      evaluator.update(outputs)
      for row in np.flatnonzero(batch['mask']):
        one = {name: array[row] for name, array in outputs.items()}
        pictures.write(place, batch['image'][row], one)
        place += 1
  for line in batches.unreadable.news():
    print(line)
  if not place:
    raise InputError(
        f'no image can be read, of {batches.num_examples:,}; each is named '
        'above'
    )
  return evaluator


def report(evaluator: CocoEvaluator) -> dict[str, Any]:
  """Returns the metrics, with the AP of each category under 'per_class'."""
  names = {c['id']: c['name'] for c in evaluator.dataset()['categories']}
  per_class = [
      {'category_id': i, 'name': names[i], 'AP': ap}
      for i, ap in evaluator.per_class().items()
  ]
  return {**evaluator.compute(), 'per_class': per_class}


def table(metrics: Mapping[str, Any]) -> str:
  """Returns what `report` returned as text."""
  rows = [(k, v) for k, v in metrics.items() if k != 'per_class']
  # Two categories may have one name.
  rows += [(f'AP of {c["name"]}', c['AP']) for c in metrics['per_class']]
  return evaluate.table(rows)


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
    max_images: pictures at most.

  Returns:
    What `report` returns, or nothing for files.

  Raises:
    InputError: the run, the images or the directory cannot be used.
  """
  if config.task.name != 'detection':
    raise InputError(
        f'--run={workdir} is a run of {config.task.name}; boxes are predicted '
        'by runs of detection'
    )
  mesh = partition.create_mesh()
  partition.check_batch_size('eval_batch_size', config.eval_batch_size, mesh)
  files = image_files.find(inputs) if inputs else []
  folder = _folder(output)
  model = inference.load(workdir, config)
  batches = create_batches(model, files)
  total = batches.num_examples
  print(f'{model.weights}, {total:,} images')
  if flip and not config.data.flip:
    print('--flip: this run never saw mirrored images (config.data.flip=0)')
  pictures = Pictures(
      folder / 'pictures', batches.class_names, score, max_images, total, files
  )
  evaluator = detect(model, flip, batches, pictures)
  metrics = {} if files else report(evaluator)
  for name, content in _contents(evaluator, metrics, files).items():
    (folder / f'{name}.json').write_text(json.dumps(content))
  if metrics:
    (folder / 'metrics.txt').write_text(f'{table(metrics)}\n')
  return metrics


def _folder(output: str) -> pathlib.Path:
  """Makes the directories, before anything that takes long."""
  folder = pathlib.Path(output)
  try:
    (folder / 'pictures').mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
        f'cannot write to --output={output}: {error.strerror}'
    ) from error
  return folder


def _contents(
    evaluator: CocoEvaluator, metrics: Any, files: Sequence[str]
) -> dict[str, Any]:
  """Returns what is written as JSON, by the names of the files."""
  results, dataset = evaluator.results(), evaluator.dataset()
  if not files:
    return dict(results=results, ground_truth=dataset, metrics=metrics)
  images = [
      {**image, 'file_name': files[image['id'] - 1]}
      for image in dataset['images']
  ]
  categories = dataset['categories']
  return dict(
      results=results, images=dict(images=images, categories=categories)
  )


def main(arguments: Sequence[str]) -> None:
  """Detects as the flags say."""
  command_line.refuse_arguments(arguments)
  for name in ('run', 'output'):
    if not FLAGS[name].value:
      raise InputError(f'--{name} is missing: a directory')
  metrics = run(
      evaluate.chosen_config(),
      FLAGS.run,
      FLAGS.output,
      inputs=FLAGS.input,
      flip=FLAGS.flip,
      score=FLAGS.score,
      max_images=FLAGS.max_images,
  )
  if metrics:
    print(table(metrics))
  print(f'results.json and pictures are in {FLAGS.output}')


if __name__ == '__main__':
  evaluate.define_flags()
  flags.DEFINE_string('output', None, 'Directory to write to.')
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
