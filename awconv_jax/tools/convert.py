r"""Makes models of runs and of torch's files: to be kept, shared and loaded.

  python -m awconv_jax.tools.convert --input=runs/digits --output=models/digits
  python -m awconv_jax.tools.convert --input=runs/digits \
      --output=digits.safetensors --dtype=bfloat16
  python -m awconv_jax.tools.convert --model=resnet50 --attention=se \
      --input=seresnet50.safetensors --output=models/seresnet50
  python -m awconv_jax.tools.convert \
      --config=configs/coco.py:preset=torchvision,num_classes=90,aw_conv=false \
      --config.model.backbone.norm_epsilon=0.0 \
      --input=fasterrcnn_resnet50_fpn_coco.pth --output=models/torchvision
  python -m awconv_jax.tools.convert --input=runs/digits \
      --output=models/digits --push=alice/digits

The output is a directory with model.safetensors, config.json and README.md, a
model card; or a .safetensors file. Either says all that loads it: every tool
takes it as --run, and `awconv_jax.load` from any place. The weights in it have
torch's names. With --push, the directory becomes a model on the Hugging Face
hub, which is then 'hf-hub:alice/digits'.

Of a run that is the newest checkpoint, the averages where it has them. Another
file is held against the network that is named; if any array is unknown, missing
or of another shape, all of those are listed and nothing is written.

Detectors have torchvision's names, and with preset=torchvision its layout. Its
91 classes are the background and the category ids 1 to 90 of COCO: label i here
is the id i + 1, so that num_classes=90 is wanted. The norms of its published
detectors have epsilon 0 (COCO_V1 of fasterrcnn_resnet50_fpn), which is no array
of the file: norm_epsilon=0.0 goes with it. What preset=mmdet is written to has
the background last, and no box for it.
"""

from collections.abc import Mapping
import json
from typing import Any

from absl import flags
import jax

from awconv_jax import (
    command_line,
    errors,
    inference,
    model_card,
    places,
    pretrained,
    weights,
)
from awconv_jax.options import MOST
from awconv_jax.weights import hub, origin
from awconv_jax.weights.located import FILES

FLAGS = flags.FLAGS


def convert(
    source: str,
    output: str,
    config: Any = None,
    *,
    entry: str | None = None,
    dtype: str | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> str:
  """Writes a model, and returns a line about it.

  Args:
    source: what `inference.load` takes.
    output: a .safetensors file, or a directory: a name without a suffix, or
      with one that begins with a digit, such as models/v1.5.
    config: the whole config, for files that do not say it themselves.
    entry: of a file, as in `weights.read`.
    dtype, metrics: as in `pretrained.save_pretrained`.

  Raises:
    InputError: see `inference.load`, `pretrained.save_pretrained`.
  """
  places.suffix_to_write(output, weights.WRITERS)  # Before all else.
  model = inference.load(source, config, entry=entry)
  pretrained.save_pretrained(model, output, dtype=dtype, metrics=metrics)
  count = sum(leaf.size for leaf in jax.tree.leaves(model.variables['params']))
  needs = model_card.lacking(model.config.to_dict())
  needs = f'; it needs {needs}' * bool(needs)
  return f'{source} -> {output}: {model.weights}, {count:,} parameters{needs}'


def config_of(
    source: str, config: Any, *, model: str | None = None, **options: Any
) -> Any:
  """Returns the config for a file that the flags give; None if it has its own.

  Args:
    source: as in `convert`.
    config: the whole config, of any task; or None.
    model: in its place, the name of a network for classification.
    **options: of the network, with its name.

  Raises:
    InputError: no network is named, two are, or one that there is not.
  """
  if config is None and model is None and not options:
    located = weights.locate(source)
    if places.at(located).is_dir() or weights.describe(located):
      return None
  if (model is None) == (config is None) or (config is not None and options):
    raise errors.InputError(
        'a file is read for one network: give either --model, --attention and '
        '--num_classes, or --config and --config.model.attention and the like'
    )
  return config or inference.imagenet_config(model, **options)


def metrics_of(path: str) -> dict[str, Any]:
  """Returns what `tools.evaluate` wrote; InputError if it is none of that."""
  try:
    found = json.loads(places.at(path).read_text(encoding='utf-8'))
    return dict(found)
  except (OSError, ValueError, TypeError, RecursionError) as error:
    reason = f'--metrics={path!r} cannot be read: {errors.first_line(error)}'
    raise errors.InputError(f'{reason}; want what evaluate wrote') from error


def main() -> None:
  """Converts as the flags say."""
  if FLAGS.push:
    hub.opened(FLAGS.push)  # Before anything is computed.
    if places.suffix_to_write(FLAGS.output, weights.WRITERS):
      raise errors.InputError('--push uploads a directory; want such --output')
  named = command_line.given('model', 'attention', 'num_classes')
  config = config_of(FLAGS.input, command_line.read_config(), **named)
  given = command_line.given('entry', 'dtype')
  if FLAGS.metrics:
    given['metrics'] = metrics_of(FLAGS.metrics)
  print(convert(FLAGS.input, FLAGS.output, config, **given))
  if config is not None:
    told = origin.untold(config.model)
    taken = ', '.join(f'{k}={v!r}' for k, v in told.items())
    print(
        f'no array tells of {taken}, nor of pooling, activations, and the mean '
        'and std of the images: these are the options given here, whatever the '
        'file was made with; see docs/weights.md'
    )
  if FLAGS.push:
    address = hub.push(FLAGS.output, FLAGS.push, FILES, FLAGS.private)
    print(f'{address}, to be loaded as {hub.PREFIX}{FLAGS.push}')


if __name__ == '__main__':
  text = "A run, a model, or a file of torch's."
  command_line.define_path('input', text, required=True)
  text = 'A directory, or a .safetensors file.'
  command_line.define_path('output', text, required=True)
  flags.DEFINE_string('model', None, 'Name of the network, such as resnet50.')
  flags.DEFINE_string('attention', None, 'Its attention, such as se.')
  flags.DEFINE_integer('num_classes', None, 'Number of its classes.', 1, MOST)
  text = "Key of the weights in a checkpoint of torch's: state_dict_ema."
  flags.DEFINE_string('entry', None, text)
  text = 'Of kernels and matrices in the file; bfloat16 halves it.'
  flags.DEFINE_enum('dtype', None, ['float32', 'bfloat16', 'float16'], text)
  text = "What tools.evaluate wrote, for the model card; the run's last."
  command_line.define_path('metrics', text)
  text = 'Model on the Hugging Face hub to upload the directory to: owner/name.'
  flags.DEFINE_string('push', None, text)
  flags.DEFINE_bool('private', False, 'Make it a private model, if it is new.')
  command_line.define_config('Config of the network, instead of --model.')
  command_line.run(main)
