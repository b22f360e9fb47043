r"""Evaluates a run on a data set: its own, or another with the same classes.

  python -m awconv_jax.tools.evaluate --run=runs/resnet50 --data=imagenet_v2
  python -m awconv_jax.tools.evaluate --run=runs/resnet50 \
      --data=folder:/data/photos --split=val --output=result.json
  python -m awconv_jax.tools.evaluate --run=resnet50.safetensors \
      --config=configs/imagenet.py:model=resnet50
  python -m awconv_jax.tools.evaluate --run=runs/coco \
      --data=coco_json:/data/birds --split=val

The newest checkpoint is used, the averages where the run has them, and what
the run's own config says of the images' size and crop. Every image counts
once; where several labels are right, as in ImageNet-ReaL
(https://arxiv.org/abs/2006.07159), any of them is a hit, and images without
one do not count.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
from typing import Any

from absl import flags, logging
import jax
import ml_collections

from awconv_jax import command_line, data, errors, tasks, text_table, weights
from awconv_jax.train import loop as train_loop
from awconv_jax.train import partition, rundir, warm_start
from awconv_jax.train import step as train_step

FLAGS = flags.FLAGS
# Short names, with the data set and the split that are meant.
SETS = {
    'imagenet2012': ('imagenet2012', 'validation'),
    'imagenet2012_real': ('tfds:imagenet2012_real', 'validation'),
    'imagenet_v2': ('tfds:imagenet_v2/matched-frequency', 'test'),
    'coco/2017': ('coco/2017', 'validation'),
}
# What every config has; what lacks inside of a section its readers say.
_NUMBERS, _SECTIONS = ('seed', 'eval_batch_size'), ('data', 'task', 'model')
_NO_OBJECT = (
    'no image of this split has an object, crowds aside: AP is undefined'
)
# Data sets whose classes have the names that their owner gave them.
_OWN_NAMES = ('folder:', 'coco_json:')


@dataclasses.dataclass
class Row:
  """One line of the table."""

  measure: str
  value: str


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
  """Returns the config that a run was made with.

  Raises:
    InputError: the directory has none, or it is not that of a run.
  """
  path = pathlib.Path(workdir) / 'config.json'
  try:
    values = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise errors.InputError(
        f'--run={workdir}: cannot read {path}: '
        f'{getattr(error, "strerror", None) or error}; give the directory of a '
        'run, or the config by --config'
    ) from error
  found = values if isinstance(values, dict) else {}
  lacking = [key for key in _NUMBERS if not isinstance(found.get(key), int)]
  for key in _SECTIONS:
    section = found.get(key)
    if not isinstance(section, dict) or 'name' not in section:
      lacking.append(f'{key}.name')
  if lacking:
    raise errors.InputError(
        f'{path} lacks {", ".join(lacking)}, which the config of every run has;'
        ' give the config by --config'
    )
  return ml_collections.ConfigDict(
      {key: _with_tuples(value) for key, value in values.items()}
  )


def _with_tuples(value: Any) -> Any:
  """Returns a value of JSON with tuples, as configs have them, for lists."""
  if isinstance(value, dict):
    return {key: _with_tuples(v) for key, v in value.items()}
  if isinstance(value, list):
    return tuple(_with_tuples(v) for v in value)
  return value


def choose(
    config: Any,
    *,
    name: str | None,
    split: str | None,
    data_dir: str | None,
    batch_size: int | None,
    max_bad_fraction: float | None,
) -> ml_collections.ConfigDict:
  """Returns a copy of a run's config with another data set to evaluate on.

  Args:
    config: of the run; None below leaves what it says.
    name: a key of `SETS` or what `config.data.name` may be.
    split: of the data set; if None, that of `SETS`, or 'test'.
    data_dir: the TFDS data directory.
    batch_size: images at a time.
    max_bad_fraction: share of the images that may be unreadable.
  """
  config = config.copy_and_resolve_references().unlock()
  if name is not None and name != config.data.name:
    config.data.name, config.data.eval_split = SETS.get(name, (name, 'test'))
  for key, value in (
      ('eval_split', split),
      ('dir', data_dir),
      ('max_bad_fraction', max_bad_fraction),
  ):
    if value is not None:
      config.data[key] = value
  if batch_size is not None:
    config.eval_batch_size = batch_size
  return config


def read_variables(source: str, shapes: Any) -> tuple[Any, str]:
  """Returns the variables of a run or a file of weights, and what they are.

  Args:
    source: a run's directory, or a file that `weights.read` takes.
    shapes: of the variables of the network.

  Raises:
    InputError: they are not there, or of another network than `shapes`.
  """
  if not pathlib.Path(source).is_dir():
    return weights.load(source, shapes), 'weights'
  variables, kind = warm_start.read_run(source)
  here, there = map(_named_shapes, (shapes, variables))
  for name in [*here, *there]:
    if here.get(name) != there.get(name):
      raise errors.InputError(
          f'--run={source} is of another network than its config: {name} is '
          f'{there.get(name, "absent")} there, want {here.get(name, "absent")}'
      )
  return variables, kind


def class_names(run: str | os.PathLike) -> list[str] | None:
  """Returns the names of a run's classes by label; None if it has none."""
  path = pathlib.Path(run) / rundir.CLASSES
  return json.loads(path.read_text()) if path.is_file() else None


def check_classes(run: str, names: Sequence[str], data_name: str) -> None:
  """Raises InputError where labels mean other classes than in training.

  Data sets of TFDS spell the same classes in several ways, so that their names
  are not compared.

  Args:
    run: its directory.
    names: of the classes of the data set, by label.
    data_name: of the data set.
  """
  known = class_names(run)
  if known is None or not data_name.startswith(_OWN_NAMES):
    return
  pairs = itertools.zip_longest(names, known)
  for label, (here, there) in enumerate(pairs):
    if here != there:
      raise errors.InputError(
          f'--data={data_name}: label {label} is the class {here!r} there, and '
          f'{there!r} in the run {run}; give classes the same names'
      )


def _named_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
      for path, leaf in leaves
  }


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
  partition.check_batch_size('eval_batch_size', config.eval_batch_size, mesh)
  task = tasks.create(config)
  batches = data.create(
      config.data,
      train=False,
      batch_size=config.eval_batch_size,
      seed=config.seed,
  )
  name, split = config.data.name, config.data.eval_split
  if task.num_classes != batches.num_classes:
    raise errors.InputError(
        f'--data={name} has {batches.num_classes} classes, and the network has '
        f'{task.num_classes}'
    )
  check_classes(source, batches.class_names, name)
  # One pass, as its reading processes take seconds to start.
  rows = iter(batches)
  first = next(rows)
  image = jax.ShapeDtypeStruct(first['image'].shape, first['image'].dtype)
  shapes = jax.eval_shape(task.init, jax.random.key(0), {'image': image})
  variables, kind = read_variables(source, shapes)
  with jax.set_mesh(mesh):
    predict = train_step.create_predict(task, mesh)
    metrics = train_loop.evaluate(
        predict,
        variables,
        itertools.chain([first], rows),
        task.evaluator(),
        mesh,
    )
  for line in batches.unreadable.news():
    print(line)
  unreadable = len(batches.unreadable)
  # Images, whether of a label or of boxes.
  counted = metrics.get('num_examples', metrics.get('num_images'))
  return {
      'run': str(source),
      'weights': kind,
      'data': name,
      'split': split,
      'num_unreadable': unreadable,
      'num_unlabelled': batches.num_examples - counted - unreadable,
      **metrics,
  }


def _is_undefined(name: str, value: Any) -> bool:
  """Returns whether COCO's -1 stands there: nothing to find."""
  return name.startswith(('AP', 'AR')) and value == -1


def _format(name: str, value: Any) -> str:
  if _is_undefined(name, value):
    return 'n/a'
  if isinstance(value, float):
    return f'{value:.4f}'
  return text_table.thousands(value)


def table(measures: Iterable[tuple[str, Any]]) -> str:
  """Returns names and values of measures as text.

  Where COCO has -1, as there is nothing to find, the table has 'n/a'; a line
  below it says so if that is true of all objects.
  """
  measures = list(measures)
  rows = [Row(name, _format(name, value)) for name, value in measures]
  text = text_table.make(rows, str)
  if ('AP', -1) in measures:
    text += f'\n{_NO_OBJECT}'
  return text


@contextlib.contextmanager
def naming_the_flag(config_given: bool) -> Iterator[None]:
  """Completes errors that want another config: how a tool is given one.

  Args:
    config_given: whether --config, and so --config.data.key, is in use.
  """
  try:
    yield
  except errors.InputError as error:
    if config_given or 'config.data.' not in str(error):
      raise
    raise errors.InputError(
        f'{error} (beside --run, keys are set of a whole config: --config=<the '
        "run's config file> --config.data.<key>=<value>)"
    ) from error


def write(result: Mapping[str, Any], output: str) -> None:
  """Writes a result as JSON.

  Raises:
    InputError: the file cannot be written.
  """
  try:
    pathlib.Path(output).write_text(json.dumps(result, indent=2) + '\n')
  except OSError as error:
    raise errors.InputError(
        f'cannot write --output={output}: {error.strerror}'
    ) from error


def main(arguments: Sequence[str]) -> None:
  """Evaluates as the flags say."""
  command_line.refuse_arguments(arguments)
  if not FLAGS.run:
    raise errors.InputError("--run is missing: a run's directory, or weights")
  if FLAGS.output:
    command_line.check_output(FLAGS.output)
  if FLAGS.batch_size is not None and FLAGS.batch_size < 1:
    raise errors.InputError(f'--batch_size={FLAGS.batch_size} must be above 0')
  logging.set_verbosity(logging.WARNING)  # Orbax tells of every step.
  config = command_line.read_config(lambda: read_config(FLAGS.run))
  config = choose(
      config,
      name=FLAGS.data,
      split=FLAGS.split,
      data_dir=FLAGS.data_dir,
      batch_size=FLAGS.batch_size,
      max_bad_fraction=FLAGS.max_bad_fraction,
  )
  with naming_the_flag(FLAGS.config is not None):
    result = evaluate(config, FLAGS.run)
  print(table(result.items()))
  if FLAGS.output:
    write(result, FLAGS.output)


if __name__ == '__main__':
  flags.DEFINE_string('run', None, 'Directory of a run, or file of weights.')
  flags.DEFINE_string(
      'data', None, f"{', '.join(SETS)}, or as config.data.name; the run's own."
  )
  flags.DEFINE_string('split', None, "Of the data set; 'test' of most others.")
  flags.DEFINE_string('data_dir', None, "TFDS data directory; the run's own.")
  flags.DEFINE_integer('batch_size', None, "Images at a time; the run's own.")
  flags.DEFINE_float(
      'max_bad_fraction', None, "Share that may be unreadable; the run's own."
  )
  flags.DEFINE_string('output', None, 'JSON file to write the result to.')
  command_line.define_config(
      'Config, in place of the one that the run was made with.'
  )
  command_line.run(main)
