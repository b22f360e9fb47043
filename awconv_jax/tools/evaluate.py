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

from collections.abc import Iterator, Mapping
import json
from typing import Any

from absl import flags
import jax
from jax.sharding import Mesh
import ml_collections

from awconv_jax import command_line, inference, places, text_table, weights
from awconv_jax import data as data_sets
from awconv_jax.data import sources
from awconv_jax.errors import InputError
from awconv_jax.options import MOST
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
# Options of a config by what they are called here.
CHANGES = {
    'split': 'data.eval_split',
    'data_dir': 'data.dir',
    'batch_size': 'eval_batch_size',
    'max_bad_fraction': 'data.max_bad_fraction',
}
# Data sets whose owner named the classes; TFDS spells them in several ways.
_OWN_NAMES = ('folder:', 'coco_json:', 'masks:folder:')


def choose(
    config: Mapping[str, Any], *, data: str | None = None, **changes: Any
) -> ml_collections.ConfigDict:
  """Returns a copy of a run's config with another data set to evaluate on.

  Args:
    config: of the run, which decides where nothing else is given.
    data: a key of `SETS` or what `config.data.name` may be. The split is then
      that of `SETS`, or 'test'.
    **changes: further values by the keys of `CHANGES`.

  Raises:
    InputError: it is no config, or it does not fit the data set.
  """
  changed = settings.complete(config).unlock()
  if data and data != (before := changed.data.name):
    name, split = SETS.get(data, (data, 'test'))
    if sources.reader_of(name).func is not sources.reader_of(before).func:
      raise InputError(f'--data={data!r} does not fit a run of {before!r}')
    changed.data.update(name=name, eval_split=split)
  changed.update_from_flattened_dict({CHANGES[k]: changes[k] for k in changes})
  return settings.complete(changed)


def eval_batches(model: inference.Model) -> Any:
  """Returns the batches that the config of a model says.

  Raises:
    InputError: the labels mean other classes than in training, the images have
      other channels, or the devices cannot share a batch.
  """
  config, name = model.config, model.config.data.name
  partition.check_batch_size(
      'eval_batch_size', config.eval_batch_size, partition.create_mesh()
  )
  batches = data_sets.create(
      config.data, train=False, batch_size=config.eval_batch_size, seed=0
  )
  kept = model.kept_names if name.startswith(_OWN_NAMES) else None
  names = zip(batches.class_names, kept or (), strict=False)
  for what, there, here in (
      ('num_classes', batches.num_classes, model.task.num_classes),
      ('channels', batches.channels, model.channels),
      *((f'label {label}', *pair) for label, pair in enumerate(names)),
  ):
    if there != here:
      raise InputError(
          f'--data={name!r} does not fit the run {model.source!r}: {what} is '
          f'{there!r} there and {here!r} here'
      )
  return batches


def predictions(
    model: inference.Model, batches: Any, task: Any, mesh: Mesh
) -> Iterator[tuple[Any, Any]]:
  """Yields batches and predictions, with the mesh set; names the unreadable."""
  predict = train_step.create_predict(task, mesh)
  yield from loop.predictions(predict, model.variables, batches, mesh)
  for line in batches.unreadable.news():
    print(line)


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
  model = inference.load(source, config)
  batches, evaluator = eval_batches(model), model.task.evaluator()
  mesh = partition.create_mesh()
  with jax.set_mesh(mesh):
    for _, outputs in predictions(model, batches, model.task, mesh):
      evaluator.update(outputs)
  metrics = evaluator.compute()
  # Images, whether of a label or of boxes.
  counted = metrics.get('num_examples', metrics.get('num_images'))
  unreadable = len(batches.unreadable)
  return {
      'run': str(source),
      'weights': model.weights,
      'data': config.data.name,
      'split': config.data.eval_split,
      'num_unreadable': unreadable,
      'num_unlabelled': batches.num_examples - counted - unreadable,
      **metrics,
  }


def table(metrics: Mapping[str, Any]) -> str:
  """Returns what `evaluate` or `predict.run` returned as text.

  Where there is -1, as there is nothing to find, the table has 'n/a'; a line
  below it says so if that is true of all objects.
  """
  rows = [(k, v) for k, v in metrics.items() if k != 'per_class']
  for one in metrics.get('per_class', ()):
    *_, (measure, value) = one.items()
    rows.append((f'{measure} of {one["name"]}', value))
  named = [dict(measure=name, value=value) for name, value in rows]
  text = text_table.make(named, text_table.measured)
  if metrics.get('AP') == -1:
    text += '\nno image has an object, crowds aside: AP is undefined'
  return text


def define_flags() -> None:
  """Defines the flags that all tools over a run have."""
  text = 'A run, a model or a file of weights; see docs/weights.md.'
  command_line.define_path('run', text, required=True)
  text = 'Of the data set; the eval split. May be sliced: test[:100].'
  flags.DEFINE_string('split', None, text)
  command_line.define_path('data_dir', "TFDS data directory; the run's.")
  text = "Images at a time; the run's."
  flags.DEFINE_integer('batch_size', None, text, 1, MOST)
  command_line.define_config('Config, in place of that of the run.')


def chosen() -> tuple[ml_collections.ConfigDict, str]:
  """Returns the config of the flags, see `choose`, and where the run lies.

  It is located once, lest the config and the weights be of two revisions.
  """
  source = weights.locate(FLAGS.run)
  config = command_line.read_config(lambda: rundir.read_config(source))
  return choose(config, **command_line.given('data', *CHANGES)), source


def main() -> None:
  """Evaluates as the flags say."""
  if FLAGS.output:
    command_line.check_output(FLAGS.output)
  result = evaluate(*chosen()) | {'run': FLAGS.run}
  print(table(result))
  if FLAGS.output:
    places.at(FLAGS.output).write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
  define_flags()
  flags.DEFINE_string(
      'data', None, f"{', '.join(SETS)}, or as config.data.name; the run's."
  )
  flags.DEFINE_float(
      'max_bad_fraction', None, "Share that may be unreadable; the run's."
  )
  command_line.define_path('output', 'JSON file to write the result to.')
  command_line.run(main)
