r"""Draws what a trained network looks at: in photos, or by class of a data set.

  python -m awconv_jax.tools.explain --run=digits --input=photo.jpg \
      --output=explained.png
  python -m awconv_jax.tools.explain --run=runs/scenes --input=photo.jpg \
      --layer=c4 --panels=cam --output=cam.pdf
  python -m awconv_jax.tools.explain --run=runs/digits --output=classes.svg

Of photos, --panels:
  cam       Grad-CAM of the first class, or of --label; of a detector, of its
            best detection; see --layer
  maps      A at each tap of every AW-convolution, averaged over all else
  groups    A by tap and by group of inputs that share it
  variance  how far A differs from photo to photo
  kernels   the norm of K * (1 + A) over that of K, of each output channel
Without --input, of the eval split of the run's data set, --panels:
  classes   the mean map of each class, less that of all
  variances of A within classes, and between them
The numbers behind them are written, too, see --numbers.
"""

from collections.abc import Callable, Mapping, Sequence
import csv
import os
import pathlib
from typing import Any

from absl import flags
import numpy as np
from tqdm import tqdm

from awconv_jax import (
    command_line,
    errors,
    explain,
    figures,
    inference,
    places,
)
from awconv_jax.data import any_image
from awconv_jax.explain import draw
from awconv_jax.options import MOST
from awconv_jax.tools import evaluate, image_files

FLAGS = flags.FLAGS
# Images whose Grad-CAM is drawn, and layers and classes shown by class.
_DRAWN, _LAYERS, _CLASSES = 12, 6, 12
# What there is to draw, of photos and of a data set.
PHOTO_PANELS = 'cam', 'maps', 'groups', 'variance', 'kernels'
DATA_PANELS = 'classes', 'variances'
# A panel: its height in inches, and what draws it on a part of the figure.
Panel = tuple[float, Callable[[Any], None]]
Numbers = dict[str, np.ndarray]


def of_photos(
    model: inference.Model,
    images: Sequence[np.ndarray],
    label: str | None = None,
    layer: str | None = None,
    number: int = 0,
) -> tuple[dict[str, Panel], Numbers]:
  """Returns the panels of these images by name, and the numbers behind them.

  Raises:
    InputError: see `explain.class_activation`.
  """
  shown = images[:_DRAWN]
  cams = [
      explain.class_activation(model, image, label, layer, number=number)
      for image in shown
  ]
  rows = -(-len(shown) // 3)
  panels: dict[str, Panel] = {
      'cam': (1.7 * rows, lambda part: draw.cams(part, shown, cams))
  }
  numbers = {f'cam/{n}': cam.map for n, cam in enumerate(cams)}
  found = explain.layers(model, images)
  if not found:
    print('no AW-convolution in this network: Grad-CAM alone')
    return panels, numbers
  maps = {name: one.maps for name, one in found.items()}
  norms = {name: one.norms for name, one in found.items()}
  height = draw.ROW * draw.rows_of(len(maps))
  panels['maps'] = height, lambda part: draw.maps(part, maps)
  panels['groups'] = height, lambda part: draw.groups(part, maps)
  if len(images) > 1:
    panels['variance'] = height, lambda part: draw.variance(part, maps)
  panels['kernels'] = 1.9, lambda part: draw.kernels(part, norms)
  for name, one in found.items():
    numbers[f'maps/{name}'] = one.maps
    numbers[f'norm/{name}'] = one.norms.plain
    numbers[f'recalibrated_norm/{name}'] = one.norms.recalibrated
  return panels, numbers


def of_data(
    model: inference.Model, batches: Any, names: Sequence[str]
) -> tuple[dict[str, Panel], Numbers]:
  """Returns the panels by class, and the numbers; see `maps_by_class`.

  Raises:
    InputError: there is no such class, or no image of it.
  """
  known = {str(name): label for label, name in enumerate(model.names)}
  chosen = names or [*known][:_CLASSES]
  labels = [errors.look_up('class', name, known) for name in chosen]
  bar = tqdm(
      batches, total=batches.batches_per_epoch, unit=' batches', disable=None
  )
  found = explain.maps_by_class(model, bar, labels)
  for line in batches.unreadable.news():
    print(line)
  if not found:
    raise errors.InputError(
        f'--run={model.source!r} has no AW-convolution, whose maps these would '
        'be; name an --input for Grad-CAM'
    )
  # Of many layers the last, which are the likeliest to know the class.
  last = {name: found[name] for name in [*found][-_LAYERS:]}
  height = 0.6 + 0.68 * len(last)
  panels: dict[str, Panel] = {
      'classes': (height, lambda part: draw.classes(part, last, chosen)),
      'variances': (2.0, lambda part: draw.variances(part, found)),
  }
  numbers = {
      f'{field}/{name}': getattr(of, field)
      for name, of in found.items()
      for field in of._fields
  }
  return panels, numbers


def sheet(panels: Mapping[str, Panel], names: Sequence[str]) -> Any:
  """Returns a figure of a page's width with these panels below each other.

  Raises:
    InputError: there is no panel of that name.
  """
  chosen = [errors.look_up('panel', n, panels) for n in names or panels]
  heights = [height for height, _ in chosen]
  with figures.style():
    figure = figures.new(figures.PAGE, sum(heights))
    parts = figure.subfigures(len(chosen), squeeze=False, height_ratios=heights)
    for part, (_, paint) in zip(parts[:, 0], chosen, strict=True):
      paint(part)
  return figure


def _write_csv(file: Any, numbers: Numbers) -> None:
  """Writes a row for each value, with its place in the array of that name."""
  writer = csv.writer(file)
  writer.writerow(['name', 'index', 'value'])
  for name, array in numbers.items():
    for index, value in np.ndenumerate(array):
      writer.writerow([name, ' '.join(map(str, index)), value.item()])


def _write_npz(file: Any, numbers: Numbers) -> None:
  np.savez_compressed(file.buffer, **numbers)


WRITERS = {'.npz': _write_npz, '.csv': _write_csv}


def write_numbers(path: str, numbers: Numbers) -> None:
  """Writes arrays by name, as the suffix of the path says.

  Raises:
    InputError: it is neither of `WRITERS`.
  """
  suffix = pathlib.Path(path).suffix
  write = errors.look_up('suffix of --numbers:', suffix, WRITERS)
  with places.for_writing(path) as place:
    with place.open('w', newline='') as file:
      write(file, numbers)


def read_photos(paths: Sequence[str], channels: int) -> list[np.ndarray]:
  """Reads image files, upright; those that are broken are told, and left out.

  Raises:
    InputError: none can be read.
  """
  images = []
  for path in paths:
    try:
      images.append(any_image.pixels_of(path, channels))
    except errors.InputError as error:
      print(f'{errors.one_line(path)} cannot be read: {error}')
  if not images:
    raise errors.InputError('no --input can be read; each is named above')
  return images


def main() -> None:
  """Draws as the flags say."""
  output = FLAGS.output
  numbers_to = FLAGS.numbers or f'{os.path.splitext(output)[0]}.npz'
  for path in (output, numbers_to):
    command_line.check_output(path)
  figures.check_format(output)
  suffix = pathlib.Path(numbers_to).suffix
  errors.look_up('suffix of --numbers:', suffix, WRITERS)
  known = PHOTO_PANELS if FLAGS.input else DATA_PANELS
  for panel in FLAGS.panels or ():
    errors.look_up('panel', panel, dict.fromkeys(known))
  paths, images = image_files.find(FLAGS.input), []
  image_files.check_outputs(paths, (output, numbers_to))
  config = evaluate.chosen_config()
  model = inference.load(FLAGS.run, config)
  if paths:
    images = read_photos(paths, model.channels)
    options = command_line.given('label', 'layer', 'number')
    panels, numbers = of_photos(model, images, **options)
  else:
    batches = evaluate.eval_batches(model)
    panels, numbers = of_data(model, batches, FLAGS.classes or ())
  figures.save(sheet(panels, FLAGS.panels or ()), output)
  write_numbers(numbers_to, numbers)
  print(
      f'written: {output} ({", ".join(FLAGS.panels or panels)}), {numbers_to}'
  )
  if broken := len(paths) - len(images):
    raise errors.InputError(
        f'{broken} of {len(paths)} files cannot be read, each is named above'
    )


if __name__ == '__main__':
  evaluate.define_flags()
  flags.adopt_module_key_flags(evaluate)  # So that --help lists them.
  text = 'Figure: .png, .pdf, .svg.'
  command_line.define_path('output', text, 'explained.png')
  text = 'The numbers, .npz or .csv; as --output, but .npz.'
  command_line.define_path('numbers', text)
  flags.DEFINE_multi_string(
      'input', [], 'Image file or folder; may be given several times.'
  )
  flags.DEFINE_list('panels', None, 'Those to draw, of the ones above; all.')
  text = 'Of Grad-CAM: the name of a class. The first, or the best detection.'
  flags.DEFINE_string('label', None, text)
  text = 'Of Grad-CAM: c2 (the first stage), c3, ...; p2, p3, ... of a pyramid.'
  flags.DEFINE_string('layer', None, text)
  text = 'Of Grad-CAM: which detection (of that class), the best being 0.'
  flags.DEFINE_integer('number', 0, text, 0, MOST)
  text = f'Names of the classes to compare; the first {_CLASSES}.'
  flags.DEFINE_list('classes', None, text)
  command_line.run(main)
