r"""Exports a trained network as one program, for use without this package.

  python -m awconv_jax.tools.export --run=digits --output=exported/digits
  python -m awconv_jax.tools.export --run=runs/coco --output=exported/coco
  python -m awconv_jax.tools.export --run=digits --format=onnx --batch_size=1 \
      --output=exported/digits_onnx

A directory is written. `model.stablehlo` is StableHLO by `jax.export`, for any
number of images, on CPU, CUDA and TPU, with the weights within: uint8 images
in, out come probabilities, or boxes, scores, labels and valid, or the classes
of pixels. `model.json` has the names of the classes, what images are to be
brought to, and the shapes. Where images lie on a canvas, that for portraits is
`portrait.stablehlo`. With --format=onnx it is `model.onnx`, for --batch_size
images.

What was written is read back and compared with the network; it is removed if
the two differ. See docs/export.md for what loads it.
"""

from collections.abc import Callable, Mapping
import copy
import dataclasses
import functools
import importlib
import json
import pathlib
import shutil
from typing import Any

from absl import flags
import jax
from jax import export as jax_export
import numpy as np

from awconv_jax import command_line, inference, weights
from awconv_jax.errors import InputError
from awconv_jax.options import MOST, local_path
from awconv_jax.tools import onnx_program
from awconv_jax.train import rundir

FLAGS = flags.FLAGS
PLATFORMS = 'cpu', 'cuda', 'tpu'
BATCHES = 1, 3, 5  # What is compared.
DESCRIPTION = 'model.json'
Arrays = Mapping[str, Any]


def function_of(model: inference.Model) -> Callable[..., Arrays]:
  """Returns the network as a function of its inputs by name; see `inputs`."""
  variables = jax.device_put(model.variables)

  def outputs(**batch):
    # Or XLA would compute what it can of the weights while it compiles: slowly.
    held = jax.lax.optimization_barrier(variables)
    return _outputs(model, held, batch)

  return outputs


def _outputs(model, variables, batch):
  found = model.outputs(variables, batch, flip=False)
  return {name: array for name, array in found.items() if name not in batch}


def inputs(model: inference.Model, portrait: bool, number: Any) -> Arrays:
  """Returns the shapes of what the network takes for a number of images.

  'image' is uint8 [N, H, W, C]; on a canvas 'image_size', int32 [N, 2], are
  the heights and widths of the images on the canvas.
  """
  if isinstance(model, inference.Classifier):
    side = model.preparation['size']
    shape = number, side, side, model.channels
    return {'image': jax.ShapeDtypeStruct(shape, np.uint8)}
  canvas = model.config.data.canvas[:: -1 if portrait else 1]
  return {
      'image': jax.ShapeDtypeStruct((number, *canvas, 3), np.uint8),
      'image_size': jax.ShapeDtypeStruct((number, 2), np.int32),
  }


def views(model: inference.Model) -> dict[str, bool]:
  """Returns the names of the programs, and whether they are for portraits."""
  if isinstance(model, inference.OnCanvas):
    height, width = model.config.data.canvas
    if height != width:
      return {'model': False, 'portrait': True}
  return {'model': False}


def examples(shapes: Arrays) -> dict[str, np.ndarray]:
  """Returns images to compare outputs of: rectangles of colours, and noise."""
  rng = np.random.default_rng(0)
  number, height, width, channels = shapes['image'].shape
  image = rng.integers(96, 160, shapes['image'].shape)
  for one in image:
    for _ in range(12):
      (top, left), (rows, columns) = (
          rng.integers((height, width)) // part for part in (1, 3)
      )
      color = rng.integers(0, 256, channels)
      one[top : top + rows + 1, left : left + columns + 1] = color
  made = {'image': image.astype(np.uint8)}
  if 'image_size' in shapes:
    sizes = [(height, width), (height * 3 // 4, width)]
    made['image_size'] = np.int32([sizes[i % 2] for i in range(number)])
  return made


def difference(found: Arrays, expected: Arrays) -> dict[str, float]:
  """Returns, by output, the largest difference of any value.

  Of boxes, as a share of the largest coordinate; of what should be the same,
  such as labels, 1 for any difference; of the classes of pixels a hundredth of
  the share that differs, as rounding decides where two are as likely.
  """
  if found.keys() != expected.keys():
    raise InputError(f'outputs are {sorted(found)}, not {sorted(expected)}')
  result = {}
  for name, want in expected.items():
    got, want = np.asarray(found[name]), np.asarray(want)
    if got.shape != want.shape or not np.all(np.isfinite(got)):
      result[name] = np.inf
    elif want.dtype.kind == 'f':
      scale = max(np.abs(want).max(), 1)
      result[name] = float(np.abs(got - want).max() / scale)
    elif want.ndim == 3:
      result[name] = float(np.mean(got != want)) / 100
    else:
      result[name] = float(np.any(got != want))
  return result


def compare(
    run: Callable[..., Arrays],
    model: inference.Model,
    portrait: bool,
    batches: tuple[int, ...],
    tolerance: float,
) -> str:
  """Returns by how much an exported program differs from the network.

  InputError if that is more than the tolerance, says of which output.
  """
  most = max(batches)
  given = examples(inputs(model, portrait, most))
  network = jax.jit(functools.partial(_outputs, model))
  expected = jax.device_get(network(model.variables, given))
  worst = 0.0
  for number in batches:
    some, want = (
        {name: array[:number] for name, array in arrays.items()}
        for arrays in (given, expected)
    )
    for name, value in difference(run(**some), want).items():
      if not value <= tolerance:
        raise InputError(
            f'the exported program differs from the network by {value:.1e} in '
            f'{name!r} at {number} images, more than {tolerance:.0e}; nothing '
            'is kept. Below float32 rounding alone may do that: '
            '--config.model.dtype=float32'
        )
      worst = max(worst, value)
  text = f'compared at {", ".join(map(str, batches))} images, '
  if 'valid' in expected:
    number = np.sum(expected['valid'])
    text += f'{number} objects on {most} of them, '
    text += '' if number else 'which compares next to nothing, '
  return text + f'largest difference {worst:.1e}'


def _stablehlo(model, portrait, path, number):
  """Writes a program for any number of images; returns what runs the file."""
  del number
  try:
    import flatbuffers  # noqa: F401  # What it is serialised with.
  except ImportError as error:
    raise InputError(
        f'--format=stablehlo needs {error.name!r}: pip install '
        "'awconv_jax[export]'"
    ) from error
  (any_number,) = jax_export.symbolic_shape('batch')
  shapes = inputs(model, portrait, any_number)
  program = jax.jit(function_of(model))
  made = jax_export.export(program, platforms=PLATFORMS)(**shapes)
  path.write_bytes(made.serialize())
  loaded = jax_export.deserialize(bytearray(path.read_bytes()))
  return jax.jit(loaded.call)


def _onnx(model, portrait, path, number):
  """Writes a program for a number of images; returns what runs the file."""
  if not isinstance(model, inference.Classifier):
    raise InputError('--format=onnx is of classifiers alone; want stablehlo')
  # Of products alone, and right: jax2onnx translates the convolutions with
  # kernels of each sample into others.
  task, network = copy.copy(model.task), model.task.model
  options = (network.aw_options or {}) | dict(implementation='im2col')
  task.model = network.clone(aw_options=options)
  function = function_of(dataclasses.replace(model, task=task))
  return onnx_program.write(function, inputs(model, portrait, number), path)


# What writes a file and returns the function that the file is, and by how much
# it may be off.
FORMATS = {'stablehlo': (_stablehlo, 1e-5), 'onnx': (_onnx, 1e-4)}


def description(model: inference.Model) -> dict[str, Any]:
  """Returns what is written beside the program: how it is to be used."""
  config = model.config
  told: dict[str, Any] = dict(
      network=config.model.to_dict(),
      weights=model.weights,
      version=importlib.import_module('awconv_jax').__version__,
      jax=jax.__version__,
      classes=list(model.names),
      channels='RGB' if model.channels == 3 else 'grey',
  )
  if isinstance(model, inference.OnCanvas):
    data = config.data
    sides = dict(canvas=[*data.canvas], short_side=data.short_side)
    if model.category_ids is not None:
      told |= dict(categories=[*model.category_ids])
    told |= sides | dict(long_side=data.long_side)
  elif isinstance(model, inference.Classifier):
    told |= dict(image_size=model.preparation['size'])
    told |= dict(crop=dict(model.preparation))
  return told


def export(
    model: inference.Model,
    output: str | pathlib.Path,
    *,
    format: str = 'stablehlo',
    batch_size: int = 1,
) -> list[str]:
  """Writes a network as a directory of programs; returns a line about each.

  Args:
    model: of `inference.load`.
    output: the directory, which must not hold anything.
    format: a key of `FORMATS`.
    batch_size: number of images, for what is not for any number.

  Raises:
    InputError: the place is taken, a package is missing, or the program does
      not compute what the network does. Nothing is left there.
  """
  write, tolerance = FORMATS[format]
  folder, lines = pathlib.Path(local_path(output)), []
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise InputError(f'--output={str(output)!r} exists; name another place')
  folder.mkdir(parents=True, exist_ok=True)
  batches = BATCHES if format == 'stablehlo' else (batch_size,)
  try:
    told = description(model) | dict(inputs={}, outputs={})
    for name, portrait in views(model).items():
      path = folder / f'{name}.{format}'
      run = write(model, portrait, path, batch_size)
      compared = compare(run, model, portrait, batches, tolerance)
      size = path.stat().st_size / 1e6
      lines.append(f'{path}: {size:.1f} MB; {compared}')
      number: Any = 'batch' if format == 'stablehlo' else batch_size
      shapes = inputs(model, portrait, batch_size)
      found = jax.eval_shape(function_of(model), **shapes)
      for key, arrays in (('inputs', shapes), ('outputs', found)):
        told[key][path.name] = {
            n: f'{a.dtype} {[number, *a.shape[1:]]}'.replace("'", '')
            for n, a in arrays.items()
        }
    text = json.dumps(told, indent=2) + '\n'
    (folder / DESCRIPTION).write_text(text)
  except BaseException:
    shutil.rmtree(folder)
    raise
  return [*lines, f'{folder / DESCRIPTION}: {len(model.names)} classes']


def main() -> None:
  """Exports as the flags say."""
  source = weights.locate(FLAGS.run)
  config = command_line.read_config(lambda: rundir.read_config(source))
  model = inference.load(source, config)
  given = dict(format=FLAGS.format, batch_size=FLAGS.batch_size)
  for line in export(model, FLAGS.output, **given):
    print(line)


if __name__ == '__main__':
  text = "A run's directory, or a model; see `awconv_jax.load`."
  command_line.define_path('run', text, required=True)
  text = 'Directory to write, which is new.'
  command_line.define_path('output', text, required=True)
  flags.DEFINE_enum('format', 'stablehlo', [*FORMATS], 'Of the program.')
  text = 'Images at a time, where the format wants a number.'
  flags.DEFINE_integer('batch_size', 1, text, 1, MOST)
  command_line.define_config('Config, in place of that of the run.')
  command_line.run(main)
