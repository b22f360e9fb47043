r"""Converts weights: from torch's files, to .safetensors, from and to runs.

  python -m awconv_jax.tools.convert --model=resnet50 \
      --input=resnet50.pth --output=resnet50.safetensors
  python -m awconv_jax.tools.convert --model=resnet50 --attention=se \
      --input=seresnet50.safetensors --output=runs/seresnet50
  python -m awconv_jax.tools.convert \
      --input=runs/digits --output=digits.safetensors
  python -m awconv_jax.tools.convert \
      --config=configs/coco.py:preset=torchvision,num_classes=90,aw_conv=false \
      --config.model.backbone.norm_epsilon=0.0 \
      --input=fasterrcnn_resnet50_fpn_coco.pth --output=runs/torchvision

What is read decides the direction. A file has torch's names and is held
against the network that is named; if any array is unknown, missing or of
another shape, all of those are listed and nothing is written. A directory is
that of a run: its newest checkpoint, the averages where it has them. What
--config says is written to a directory along with the weights, as config.json.

Detectors have torchvision's names, and with preset=torchvision its layout. Its
91 classes are the background and the category ids 1 to 90 of COCO: label i here
is the id i + 1, so that num_classes=90 is wanted. The norms of its published
detectors have epsilon 0 (COCO_V1 of fasterrcnn_resnet50_fpn), which is no array
of the file: norm_epsilon=0.0 goes with it wherever the weights are used. What
preset=mmdet is written to has the background last, and no box for it.
"""

import os
import pathlib
from typing import Any

from absl import flags
import jax
import numpy as np

from awconv_jax import command_line, errors, models, places, weights
from awconv_jax.options import MOST, any_path
from awconv_jax.train import checkpoint, rundir, settings, warm_start
from awconv_jax.weights import origin

FLAGS = flags.FLAGS
# Suffixes of files that hold weights, besides those of `weights`. A name with
# any other, such as that of runs/v1.5, is that of a directory.
OTHERS = '.safetensor .npz .npy .h5 .hdf5 .onnx .ckpt .msgpack .pkl .pickle'


def write_run(
    workdir: str | os.PathLike, variables: Any, config: Any = None
) -> None:
  """Writes variables as checkpoint 0 of a run, without any optimizer state.

  Args:
    workdir: directory of the run, which is made.
    variables: of the network, with 'params' among them.
    config: the whole config, if it is known, to be that of the run.

  Raises:
    InputError: the directory holds another run.
  """
  model_state, workdir = dict(variables), places.at(any_path(workdir))
  state = {'params': model_state.pop('params'), 'model_state': model_state}
  directory = workdir / 'checkpoints'
  if (directory / '0').exists():
    raise errors.InputError(
        f'{workdir} already holds checkpoint 0; give another --output'
    )
  directory.mkdir(parents=True, exist_ok=True)
  with checkpoint.Checkpointer(directory, keep=2) as checkpointer:
    checkpointer.save(0, state, {})
  if config is not None:
    rundir.write_config(workdir, config)


def convert(
    source: str,
    output: str,
    shapes: Any,
    config: Any = None,
    *,
    entry: str | None = None,
    network: Any = None,
) -> str:
  """Reads weights, writes them in the other form, and returns a line about it.

  Args:
    source: a file that `weights.read` takes, or a run's directory.
    output: a file that `weights.save` takes, or a directory: anything without
      the suffix of a file of weights.
    shapes: of the variables in a file; unused for a directory, whose
      checkpoints say it themselves.
    config: as in `write_run`.
    entry, network: of a file, as in `weights.read`.

  Raises:
    InputError: see `weights.load`, `weights.save`.
  """
  suffix, of_files = pathlib.Path(output).suffix, OTHERS.split()
  to_file = suffix in weights.WRITERS
  if not to_file and suffix.lower() in (*weights.READERS, *of_files):
    known = (*weights.WRITERS, 'none (a directory)')
    raise errors.unknown_name('suffix of --output:', suffix, known)
  if places.at(source).is_dir():
    if entry:
      raise errors.InputError(f'--entry={entry!r} is of a file, not of a run')
    variables, kind = warm_start.read_run(source)
    network = warm_start.network_of(source)
  else:
    given = dict(entry=entry, network=network)
    variables, kind = weights.load(source, shapes, **given), 'weights'
  if to_file:
    weights.save(output, variables, network)
  else:
    write_run(output, variables, config)
  count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  return f'{source} -> {output}: {kind}, {count:,} parameters'


def network_of(config: Any, *, model: str | None = None, **options: Any) -> Any:
  """Returns the network or the detector that the flags name.

  Args:
    config: the whole config, of any task; or None.
    model: in its place, the name of a network for classification.
    **options: of the network, with its name.

  Raises:
    InputError: no network is named, two are, or one that there is not.
  """
  if (model is None) == (config is None) or (config is not None and options):
    raise errors.InputError(
        'a file is read for one network: give either --model, --attention and '
        '--num_classes, or --config and --config.model.attention and the like'
    )
  if config is None:
    return models.create(model, **options)
  return settings.create_task(config).model


def shapes_of(config: Any, *, channels: int = 3, **named: Any) -> Any:
  """Returns the shapes of the variables of that, for images of those channels.

  The other arguments, and errors, are as in `network_of`.
  """
  network, side = network_of(config, **named), models.IMAGENET_SIDE
  if config is None:
    return models.shapes_of(network, side, channels)
  image = jax.ShapeDtypeStruct((1, side, side, channels), np.uint8)
  init = settings.create_task(config).init
  return jax.eval_shape(init, jax.random.key(0), {'image': image})


def main() -> None:
  """Converts as the flags say."""
  shapes = config = network = None
  if not places.at(FLAGS.input).is_dir():
    config = command_line.read_config()
    named = command_line.given('model', 'attention', 'num_classes')
    network = network_of(config, **named)
    shapes = shapes_of(config, **named, **command_line.given('channels'))
  given = dict(entry=FLAGS.entry, network=network)
  print(convert(FLAGS.input, FLAGS.output, shapes, config, **given))
  if network is not None:
    taken = ', '.join(f'{k}={v!r}' for k, v in origin.untold(network).items())
    print(
        f'no array tells of {taken}, nor of pooling, activations, and the mean '
        'and std of the images: these are the options given here, whatever the '
        'file was made with; see docs/weights.md'
    )


if __name__ == '__main__':
  text = "A file of weights, or a run's directory."
  command_line.define_path('input', text, required=True)
  text = 'A .safetensors file, or a directory.'
  command_line.define_path('output', text, required=True)
  flags.DEFINE_string('model', None, 'Name of the network, such as resnet50.')
  flags.DEFINE_string('attention', None, 'Its attention, such as se.')
  flags.DEFINE_integer('num_classes', None, 'Number of its classes.', 1, MOST)
  flags.DEFINE_integer('channels', None, 'Channels of its images.', 1, MOST)
  text = "Key of the weights in a checkpoint of torch's: state_dict_ema."
  flags.DEFINE_string('entry', None, text)
  command_line.define_config('Config of the network, instead of --model.')
  command_line.run(main)
