r"""Evaluates a run on a data set: its own, or another with the same classes.

  python -m awconv_jax.tools.evaluate --run=runs/resnet50 --data=imagenet_v2
  python -m awconv_jax.tools.evaluate --run=runs/resnet50 \
      --data=folder:/data/photos --split=val --output=result.json
  python -m awconv_jax.tools.evaluate --run=resnet50.safetensors \
      --config=configs/imagenet.py:model=resnet50
  python -m awconv_jax.tools.evaluate --run=runs/coco \
      --data=coco_json:/data/birds --split=val

The newest checkpoint is used, the averages where the run has them, and what
the run's config says of the images' size and crop. Every image counts once;
where several labels are right, as in ImageNet-ReaL
(https://arxiv.org/abs/2006.07159), any of them is a hit, and images without
one do not count.
"""

from collections.abc import Iterable, Mapping
import json
import pathlib
from typing import Any

from absl import flags, logging
import jax
import ml_collections

from awconv_jax import command_line, data, inference, text_table
from awconv_jax.errors import InputError
from awconv_jax.train import loop, partition, rundir, settings
from awconv_jax.train import step as train_step

FLAGS = flags.FLAGS
# Short names, with the data set and the split that are meant.
SETS = {
    'imagenet2012': ('imagenet2012', 'validation'),
    'imagenet2012_real': ('tfds:imagenet2012_real', 'validation'),
    'imagenet_v2': ('tfds:imagenet_v2/matched-frequency', 'test'),
    'coco/2017': ('coco/2017', 'validation'),
}
# Data sets whose classes have the names that their owner gave them.
_OWN_NAMES = ('folder:', 'coco_json:')


def choose(
    config: Mapping[str, Any],
    *,
    name: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    batch_size: int | None = None,
    max_bad_fraction: float | None = None,
) -> ml_collections.ConfigDict:
  """Returns a copy of a run's config with another data set to evaluate on.

  Args:
    config: of the run; None below leaves what it says.
    name: a key of `SETS` or what `config.data.name` may be.
    split: of the data set; if None, that of `SETS`, or 'test'.
    data_dir: the TFDS data directory.
    batch_size: images at a time.
    max_bad_fraction: share of the images that may be unreadable.

  Raises:
    InputError: it is no config, or the devices cannot share a batch evenly.
  """
  changed = settings.complete(config).unlock()
  if name and name != changed.data.name:
    changed.data.name, changed.data.eval_split = SETS.get(name, (name, 'test'))
  wanted = dict(eval_split=split, dir=data_dir)
  wanted['max_bad_fraction'] = max_bad_fraction
  changed.data.update({k: v for k, v in wanted.items() if v is not None})
  changed.eval_batch_size = size = batch_size or changed.eval_batch_size
  mesh = partition.create_mesh()
  partition.check_batch_size('config.eval_batch_size', size, mesh)
  return settings.complete(changed)


def eval_batches(model: inference.Model) -> Any:
  """Returns the batches that the config of a model says.

  Data sets of TFDS spell the same classes in several ways, so that their names
  are not compared.

  Raises:
    InputError: the labels mean other classes than in training, or the images
      have other channels.
  """
  config = model.config
  size, name = config.eval_batch_size, config.data.name
  batches = data.create(
      config.data, train=False, batch_size=size, seed=config.seed
  )
  here = (batches.num_classes, batches.channels)
  wanted = (model.task.num_classes, model.channels)
  if here != wanted:
    raise InputError(
        f'--data={name} has {here[0]} classes and images of {here[1]} '
        f'channel(s), and the network of {model.source} has {wanted[0]} and '
        f'takes {wanted[1]}'
    )
  kept = model.kept_names if name.startswith(_OWN_NAMES) else ()
  pairs = zip(batches.class_names, kept or (), strict=False)
  for label, (here, there) in enumerate(pairs):
    if here != there:
      raise InputError(
          f'--data={name}: label {label} is the class {here!r} there, and '
          f'{there!r} in the run {model.source}; give classes the same names'
      )
  return batches


def evaluate(config: Any, source: str) -> dict[str, Any]:
  """Evaluates weights on the data set of a config.

  Args:
    config: the whole config, as of `choose`.
    source: a run's directory, or a file that `weights.read` takes.

  Returns:
    'run', 'weights', 'data', 'split', 'num_unreadable' and 'num_unlabelled'
    (images that do not count), and the metrics of the task's evaluator.

  Raises:
    InputError: the weights or the data cannot be used.
  """
  mesh = partition.create_mesh()
  model = inference.load(source, config)
  batches = eval_batches(model)
  with jax.set_mesh(mesh):
    predict = train_step.create_predict(model.task, mesh)
    evaluator = model.task.evaluator()
    metrics = loop.evaluate(predict, model.variables, batches, evaluator, mesh)
  for line in batches.unreadable.news():
    print(line)
  unreadable = len(batches.unreadable)
  # Images, whether of a label or of boxes.
  counted = metrics.get('num_examples', metrics.get('num_images'))
  return {
      'run': str(source),
      'weights': model.weights,
      'data': config.data.name,
      'split': config.data.eval_split,
      'num_unreadable': unreadable,
      'num_unlabelled': batches.num_examples - counted - unreadable,
      **metrics,
  }


def _format(name: str, value: Any) -> str:
  if name.startswith(('AP', 'AR')) and value == -1:  # Nothing to find.
    return 'n/a'
  is_float = isinstance(value, float)
  return f'{value:.4f}' if is_float else text_table.thousands(value)


def table(measures: Iterable[tuple[str, Any]]) -> str:
  """Returns names and values of measures as text.

  Where COCO has -1, as there is nothing to find, the table has 'n/a'; a line
  below it says so if that is true of all objects.
  """
  measures = list(measures)
  rows = [dict(measure=name, value=_format(name, v)) for name, v in measures]
  text = text_table.make(rows, str)
  if ('AP', -1) in measures:
    text += '\nno image has an object, crowds aside: AP is undefined'
  return text


def define_flags() -> None:
  """Defines the flags that all tools over a run have."""
  text = 'Directory of a run, or file of weights.'
  flags.DEFINE_string('run', None, text, required=True)
  flags.DEFINE_string('split', None, 'Of the data set; the eval split.')
  flags.DEFINE_string('data_dir', None, "TFDS data directory; the run's.")
  flags.DEFINE_integer(
      'batch_size', None, "Images at a time; the run's.", lower_bound=1
  )
  command_line.define_config(
      'Config, in place of the one that the run was made with.'
  )


def chosen_config(**changes: Any) -> ml_collections.ConfigDict:
  """Returns the config of the flags; see `choose`."""
  logging.set_verbosity(logging.WARNING)  # Orbax tells of every step.
  config = command_line.read_config(lambda: rundir.read_config(FLAGS.run))
  for flag in ('split', 'data_dir', 'batch_size'):
    changes[flag] = FLAGS[flag].value
  return choose(config, **changes)


def main() -> None:
  """Evaluates as the flags say."""
  if FLAGS.output:
    command_line.check_output(FLAGS.output)
  changes = dict(name=FLAGS.data, max_bad_fraction=FLAGS.max_bad_fraction)
  result = evaluate(chosen_config(**changes), FLAGS.run)
  print(table(result.items()))
  if FLAGS.output:
    pathlib.Path(FLAGS.output).write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
  define_flags()
  flags.DEFINE_string(
      'data', None, f"{', '.join(SETS)}, or as config.data.name; the run's."
  )
  flags.DEFINE_float(
      'max_bad_fraction', None, "Share that may be unreadable; the run's."
  )
  flags.DEFINE_string('output', None, 'JSON file to write the result to.')
  command_line.run(main)
