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

from absl import flags, logging
import jax
import numpy as np

from awconv_jax import command_line, data, errors, tasks
from awconv_jax.evaluators.coco import CocoEvaluator
from awconv_jax.tools import categories, evaluate, image_files
from awconv_jax.tools.flipped import Flipped
from awconv_jax.tools.pictures import Pictures
from awconv_jax.train import partition
from awconv_jax.train import step as train_step

FLAGS = flags.FLAGS


def create_batches(
    config: Any, task: Any, files: Sequence[str], workdir: str
) -> Any:
  """Returns batches of files, or of the eval split if there are none.

  Args:
    config: of the run.
    task: of it.
    files: paths of images.
    workdir: of the run, which may hold the names of its classes.

  Raises:
    InputError: the images cannot be used, or are of other classes.
  """
  size = config.eval_batch_size
  if files:
    ids_and_names = categories.find(config, task.num_classes, workdir)
    source = image_files.ImageFiles(files, *ids_and_names)
    return image_files.batches(source, config.data, size)
  batches = data.create(
      config.data, train=False, batch_size=size, seed=config.seed
  )
  if batches.num_classes != task.num_classes:
    raise errors.InputError(
        f'{config.data.name} has {batches.num_classes} classes, and the '
        f'network has {task.num_classes}'
    )
  evaluate.check_classes(workdir, batches.class_names, config.data.name)
  return batches


def detect(
    predictor: Any, variables: Any, batches: Any, pictures: Pictures
) -> CocoEvaluator:
  """Looks at every image once.

  Args:
    predictor: has `predict`, as tasks do.
    variables: of the network.
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
    predict = train_step.create_predict(predictor, mesh)
    for batch in batches:
      outputs = predict(variables, partition.shard_batch(mesh, batch))
      outputs = jax.device_get(outputs)
      evaluator.update(outputs)
      for row in np.flatnonzero(batch['mask']):
        one = {name: array[row] for name, array in outputs.items()}
        pictures.write(place, batch['image'][row], one)
        place += 1
  for line in batches.unreadable.news():
    print(line)
  if not place:
    raise errors.InputError(
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
  _check(config, workdir, score, max_images)
  files = image_files.find(inputs) if inputs else []
  folder = _folder(output)
  task = tasks.create(config)
  batches = create_batches(config, task, files, workdir)
  image = jax.ShapeDtypeStruct((1, *config.data.canvas, 3), np.uint8)
  shapes = jax.eval_shape(task.init, jax.random.key(0), {'image': image})
  variables, kind = evaluate.read_variables(workdir, shapes)
  print(f'{kind}, {batches.num_examples:,} images')
  if flip and not config.data.flip:
    print('--flip: this run never saw mirrored images (config.data.flip=0)')
  pictures = Pictures(
      folder / 'pictures',
      batches.class_names,
      score,
      max_images,
      batches.num_examples,
      files,
  )
  predictor = task
  if flip:
    predictor = Flipped(task, task.model.detections['threshold'])
  evaluator = detect(predictor, variables, batches, pictures)
  metrics = {} if files else report(evaluator)
  for name, content in _contents(evaluator, metrics, files).items():
    (folder / f'{name}.json').write_text(json.dumps(content))
  if metrics:
    (folder / 'metrics.txt').write_text(f'{table(metrics)}\n')
  return metrics


def _check(config: Any, workdir: str, score: float, max_images: int) -> None:
  """Raises InputError for what can be seen to be wrong at once."""
  if config.task.name != 'detection':
    raise errors.InputError(
        f'--run={workdir} is a run of {config.task.name}; boxes are predicted '
        'by runs of detection'
    )
  if not 0 <= score <= 1:
    raise errors.InputError(f'--score={score} is not in 0..1')
  if max_images < 0:
    raise errors.InputError(f'--max_images={max_images} must be at least 0')
  mesh = partition.create_mesh()
  partition.check_batch_size('eval_batch_size', config.eval_batch_size, mesh)


def _folder(output: str) -> pathlib.Path:
  """Makes the directories, before anything that takes long."""
  folder = pathlib.Path(output)
  try:
    (folder / 'pictures').mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.InputError(
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
      raise errors.InputError(f'--{name} is missing: a directory')
  logging.set_verbosity(logging.WARNING)  # Orbax tells of every step.
  config = evaluate.choose(
      command_line.read_config(lambda: evaluate.read_config(FLAGS.run)),
      name=None,
      split=FLAGS.split,
      data_dir=FLAGS.data_dir,
      batch_size=FLAGS.batch_size,
      max_bad_fraction=None,
  )
  with evaluate.naming_the_flag(FLAGS.config is not None):
    metrics = run(
        config,
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
  flags.DEFINE_string('run', None, 'Directory of a run, or file of weights.')
  flags.DEFINE_string('output', None, 'Directory to write to.')
  flags.DEFINE_multi_string(
      'input', [], 'Image file or folder; may be given several times.'
  )
  flags.DEFINE_bool('flip', False, 'Look at every image mirrored, too.')
  flags.DEFINE_float('score', 0.3, 'Least score of a box that is drawn.')
  flags.DEFINE_integer('max_images', 16, 'Pictures drawn at most.')
  flags.DEFINE_string('split', None, "Of the data set; the run's eval split.")
  flags.DEFINE_string('data_dir', None, "TFDS data directory; the run's own.")
  flags.DEFINE_integer('batch_size', None, "Images at a time; the run's own.")
  command_line.define_config(
      'Config, in place of the one that the run was made with.'
  )
  command_line.run(main)
