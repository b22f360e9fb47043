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

from collections.abc import Sequence
import json
import pathlib
from typing import Any

from absl import flags
import jax
import numpy as np
from PIL import Image

from awconv_jax import command_line, inference, places
from awconv_jax.errors import InputError
from awconv_jax.evaluators.coco import CocoEvaluator
from awconv_jax.options import MOST
from awconv_jax.tools import draw_boxes, evaluate, image_files
from awconv_jax.train import partition

FLAGS = flags.FLAGS


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
    InputError: the run or the images cannot be used.
  """
  if config.task.name != 'detection':
    raise InputError(
        f'--run={workdir!r} is of {config.task.name}, want one of detection'
    )
  files, folder = image_files.find(inputs), places.at(output)
  model: Any = inference.load(workdir, config)
  if files:
    batches = image_files.batches(files, model)
  else:
    batches = evaluate.eval_batches(model)
  # Before anything is computed.
  (folder / 'pictures').mkdir(parents=True, exist_ok=True)
  total = batches.num_examples
  print(f'{model.weights}; {total:,} images to look at')
  if flip and not config.data.flip:
    print('--flip: this run never saw mirrored images (config.data.flip=0)')

  evaluator = CocoEvaluator(batches.category_ids, batches.class_names)
  # The last image of each of so many parts of equal length.
  parts = min(max_images, total)
  drawn = {-(-total * part // parts) for part in range(1, parts + 1)}
  count, task, mesh = 0, model.predictor(flip), partition.create_mesh()
  with jax.set_mesh(mesh):
    for batch, outputs in evaluate.predictions(model, batches, task, mesh):
      evaluator.update(outputs)
      for row in np.flatnonzero(batch['mask']):
        count += 1
        if count not in drawn:
          continue
        one = {name: array[row] for name, array in outputs.items()}
        names, image_id = batches.class_names, int(one['image_id'])
        picture = draw_boxes.draw(batch['image'][row], one, names, score)
        # As COCO's files are called; or with the number, as files in two
        # folders may have one name.
        name = f'{image_id:012}'
        if files:
          # Of a length that a file's name may have.
          stem = pathlib.Path(files[image_id - 1]).stem[:50]
          name = f'{image_id:06}_{stem}'
        with places.for_writing(folder / f'pictures/{name}.png') as file:
          Image.fromarray(picture).save(file)
  if not count:
    raise InputError(f'no image can be read, of {total:,}; each is named above')
  if count < total:
    print(f'{count:,} of {total:,} images, the others cannot be read')
  return _write(folder, files, evaluator)


def _write(folder, files, evaluator: CocoEvaluator) -> dict[str, Any]:
  """Writes everything but the pictures, and returns the metrics."""
  dataset, metrics = evaluator.dataset(), {}
  written = {'results': evaluator.results()}
  if files:
    for image in dataset['images']:
      image['file_name'] = files[image['id'] - 1]
    written['images'] = {key: dataset[key] for key in ('images', 'categories')}
  else:
    ap = evaluator.per_class()
    per_class = [
        {'category_id': c['id'], 'name': c['name'], 'AP': ap[c['id']]}
        for c in dataset['categories']
    ]
    metrics = evaluator.compute() | {'per_class': per_class}
    written |= {'ground_truth': dataset, 'metrics': metrics}
    text = f'{evaluate.table(metrics)}\n'
    (folder / 'metrics.txt').write_text(text, encoding='utf-8')
  for name, content in written.items():
    (folder / f'{name}.json').write_text(json.dumps(content))
  return metrics


def main() -> None:
  """Detects as the flags say."""
  options = command_line.given('flip', 'score', 'max_images')
  config = evaluate.chosen_config()
  metrics = run(config, FLAGS.run, FLAGS.output, inputs=FLAGS.input, **options)
  if metrics:
    print(evaluate.table(metrics))
  print(f'results.json and pictures are in {FLAGS.output}')


if __name__ == '__main__':
  evaluate.define_flags()
  flags.adopt_module_key_flags(evaluate)  # So that --help lists them.
  text = 'Directory to write to.'
  command_line.define_path('output', text, required=True)
  flags.DEFINE_multi_string(
      'input', [], 'Image file or folder; may be given several times.'
  )
  default: Any = run.__kwdefaults__
  flags.DEFINE_bool('flip', default['flip'], 'Look at images mirrored, too.')
  text = 'Least score of a box that is drawn.'
  flags.DEFINE_float('score', default['score'], text, 0.0, 1.0)
  flags.register_validator('score', lambda score: score == score, 'no number')
  text = 'Pictures drawn at most.'
  flags.DEFINE_integer('max_images', default['max_images'], text, 0, MOST)
  command_line.run(main)
