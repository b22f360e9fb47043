r"""Draws what a trained network looks at: in photos, or by class of a data set.

  python -m awconv_jax.tools.explain --run=digits --input=photo.jpg \
      --output=explained.png
  python -m awconv_jax.tools.explain --run=runs/scenes --input=photo.jpg \
      --layer=c4 --panels=cam --output=cam.pdf
  python -m awconv_jax.tools.explain --run=runs/digits --output=classes.svg

Of photos, --panels:
  cam       Grad-CAM of the first class, or of --label; of a detector, of its
            best detection; see --layer. There is none of segmentation
  maps      A at each tap of every AW-convolution, averaged over all else
  groups    A by tap and by group of inputs that share it
  deviation how far A differs from photo to photo
  kernels   the norm of K * (1 + A) over that of K, of each output channel
Without --input, of the eval split of the run's data set, --panels:
  classes   the mean map of each class, less that of all
  variances of A within classes, and between them
The numbers behind them are written, too, see --numbers. Of photos these are the
maps of each, which are held in memory until then; all but --panels=cam reads
all photos, and Grad-CAM is of the first 12.
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
_BATCH = 32  # Images at a time at most.
# What there is to draw, of photos and of a data set.
PHOTO_PANELS = 'cam', 'maps', 'groups', 'deviation', 'kernels'
DATA_PANELS = 'classes', 'variances'
# A panel: its height in inches, and what draws it on a part of the figure.
Panel = tuple[float, Callable[[Any], None]]
Numbers = dict[str, np.ndarray]


def of_photos(
    model: inference.Model,
    images: Sequence[any_image.AnyImage],
    wanted: Sequence[str] = PHOTO_PANELS,
    label: str | None = None,
    layer: str | None = None,
    number: int = 0,
) -> tuple[dict[str, Panel], Numbers, int]:
  """Returns the panels wanted of images, by name, and the numbers behind them.

  Of the pixels those that are drawn are kept, and of all images the maps.

  Returns:
    What there is of `wanted`, the numbers, and how many of the images cannot be
    read: these are told, and left out.

  Raises:
    InputError: none can be read, there is nothing to draw, or see
      `explain.class_activation`.
  """
  kept, each, broken, found = [*images], [], 0, {}
  if {*wanted} != {'cam'}:
    size = min(_BATCH, len(images))
    results = explain.streamed(model, images, batch_size=size)
    bar = tqdm(results, total=len(images), unit=' images', disable=None)
    kept = []
    for image, result in zip(images, bar, strict=True):
      if isinstance(result, errors.InputError):
        _tell_broken(image, result)
        broken += 1
      else:
        kept.append(image)
        each.append(result)
    found = explain.together(each)
  panels: dict[str, Panel] = {}
  numbers: Numbers = {}
  if 'cam' in wanted:
    shown, cams, unread = _cams(model, kept, label, layer, number)
    broken += unread
    if shown:
      height = 1.7 * -(-len(shown) // 3)
      panels['cam'] = height, lambda part: draw.cams(part, shown, cams)
    numbers = {f'cam/{n}': cam.map for n, cam in enumerate(cams) if cam}
  if broken == len(images):
    raise errors.InputError('no --input can be read; each is named above')
  if found:
    drawn, behind = _of_layers(found, len(each))
    panels |= {name: drawn[name] for name in wanted if name in drawn}
    numbers |= behind
  elif each:
    print('no AW-convolution in this network: Grad-CAM alone')
  if not panels:
    raise errors.InputError(
        f'--panels={",".join(wanted)}: there is nothing to draw; maps are of '
        'AW-convolutions, and deviation is of two photos or more'
    )
  return panels, numbers, broken


def _tell_broken(image: any_image.AnyImage, error: Exception) -> None:
  tqdm.write(f'{any_image.name_of(image)} cannot be read: {error}')


def _cams(
    model: inference.Model, images: Sequence[any_image.AnyImage], *options: Any
) -> tuple[list[np.ndarray], list[explain.Cam | None], int]:
  """Returns the pixels of the first images, Grad-CAM, and how many are broken.

  Of an image without such a detection there is None in place of Grad-CAM.
  """
  label, layer, number = options
  shown, cams, broken = [], [], 0
  for image in images:
    if len(shown) == _DRAWN:
      break
    try:
      pixels = any_image.pixels_of(image, model.channels)
    except errors.InputError as error:
      _tell_broken(image, error)
      broken += 1
      continue
    shown.append(pixels)
    try:
      cams.append(
          explain.class_activation(model, pixels, label, layer, number=number)
      )
    except explain.NothingFound as error:
      print(f'{any_image.name_of(image)} is drawn without Grad-CAM: {error}')
      cams.append(None)
  return shown, cams, broken


def _of_layers(
    found: dict[str, explain.Layer], count: int
) -> tuple[dict[str, Panel], Numbers]:
  """Returns the panels of the maps of so many images, and the numbers."""
  maps = {name: one.maps for name, one in found.items()}
  norms = {name: one.norms for name, one in found.items()}
  height = draw.ROW * draw.rows_of(len(maps))
  panels: dict[str, Panel] = {
      'maps': (height, lambda part: draw.maps(part, maps)),
      'groups': (height, lambda part: draw.groups(part, maps)),
      'kernels': (1.9, lambda part: draw.kernels(part, norms)),
  }
  if count > 1:
    panels['deviation'] = height, lambda part: draw.deviation(part, maps)
  numbers = {}
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


def _check_flags() -> None:
  """Refuses flags that would change nothing.

  Raises:
    InputError: it names the first.
  """
  known = PHOTO_PANELS if FLAGS.input else DATA_PANELS
  for panel in dict.fromkeys(FLAGS.panels or ()):
    errors.look_up('panel', panel, dict.fromkeys(PHOTO_PANELS + DATA_PANELS))
    if panel not in known:
      remedy = 'leave out --input' if FLAGS.input else 'give --input'
      raise errors.InputError(f'the panel {panel} needs others: {remedy}')
    if FLAGS.panels.count(panel) > 1:
      raise errors.InputError(f'--panels has {panel} twice')
  for name in ('label', 'layer', 'number'):
    if FLAGS[name].present and not FLAGS.input:
      raise errors.InputError(f'--{name} is for --input')
    if FLAGS[name].present and FLAGS.panels and 'cam' not in FLAGS.panels:
      raise errors.InputError(f'--{name} is for the panel cam')
  if FLAGS['classes'].present and FLAGS.input:
    raise errors.InputError('--classes is of a data set: leave out --input')


def main() -> None:
  """Draws as the flags say."""
  output = FLAGS.output
  numbers_to = FLAGS.numbers or f'{os.path.splitext(output)[0]}.npz'
  for path in (output, numbers_to):
    command_line.check_output(path)
  figures.check_format(output)
  suffix = pathlib.Path(numbers_to).suffix
  errors.look_up('suffix of --numbers:', suffix, WRITERS)
  _check_flags()
  paths, broken = image_files.find(FLAGS.input), 0
  image_files.check_outputs(paths, (output, numbers_to))
  config, source = evaluate.chosen()
  model = inference.load(source, config)
  classifies = isinstance(model, inference.Classifier)
  if FLAGS['number'].present and classifies:
    raise errors.InputError('--number is for a detector, --run is none')
  if paths:
    options = command_line.given('label', 'layer', 'number')
    pixels = isinstance(model, inference.Segmenter)
    wanted = FLAGS.panels or PHOTO_PANELS[pixels:]  # Of pixels without cam.
    panels, numbers, broken = of_photos(model, paths, wanted, **options)
  else:
    batches = evaluate.eval_batches(model)
    panels, numbers = of_data(model, batches, FLAGS.classes or ())
  figures.save(sheet(panels, FLAGS.panels or ()), output)
  write_numbers(numbers_to, numbers)
  print(
      f'written: {output} ({", ".join(FLAGS.panels or panels)}), {numbers_to}'
  )
  if broken:
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
      'input',
      [],
      "Image file or folder; '-' is a list of files, one a line, on standard "
      'input. May be given several times.',
  )
  flags.DEFINE_list('panels', None, 'Those to draw, of the ones above; all.')
  text = 'Of Grad-CAM: the name of a class. The first, or the best detection.'
  flags.DEFINE_string('label', None, text)
  text = (
      'Of Grad-CAM: c2 (the first stage), c3, ...; p2, p3, ... of a pyramid; '
      'or the path of a module.'
  )
  flags.DEFINE_string('layer', None, text)
  text = 'Of Grad-CAM: which detection (of that class), the best being 0.'
  flags.DEFINE_integer('number', 0, text, 0, MOST)
  text = f'Names of the classes to compare; the first {_CLASSES}.'
  flags.DEFINE_list('classes', None, text)
  command_line.run(main)
