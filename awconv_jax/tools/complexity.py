"""Tables of parameters and multiply-adds (MACs), counted by this code.

  python -m awconv_jax.tools.complexity
  python -m awconv_jax.tools.complexity --models=wrn_28_10 --attention=none,se
  python -m awconv_jax.tools.complexity --config=configs/digits.py --channels=1

The first compares networks: each with and without AW-convolutions, and in both
conventions for the stride of a bottleneck (v1.5 in its 3x3, v1 in its first
1x1). MACs are those of convolutions and matrix products for one image, from
the jaxpr; with AW-convolutions that includes the attention branch and forming
K * (1 + A). With --config it is one network, module by module.
"""

from collections.abc import Iterator, Sequence
import functools
import itertools
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp

from awconv_jax import command_line, macs, models, text_table
from awconv_jax.errors import InputError
from awconv_jax.layers.attention import AW_CONV, find, place_of
from awconv_jax.options import MOST, NONE

FLAGS = flags.FLAGS


def count(model: Any, side: int, channels: int = 3) -> list[dict[str, Any]]:
  """Returns `macs.rows` of a network for one image [side, side, channels].

  It computes nothing.
  """
  image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
  variables = models.shapes_of(model, side, channels)
  apply = functools.partial(model.apply, train=False)
  return macs.rows(variables['params'], macs.count(apply, variables, image))


def rows(
    names: Sequence[str], attentions: Sequence[str], side: int, **options: Any
) -> Iterator[dict[str, Any]]:
  """Counts, and yields a row without AW-convolutions and one with them.

  Attention that takes their place has the first alone.

  Args:
    names: of networks.
    attentions: names, or 'none'.
    side: height and width of the image.
    **options: fields of all networks.

  Yields:
    'network', 'attention' and whether it is with 'aw'; its 'parameters', those
    'added' by AW, and 1e9 multiply-adds for one image: 'gmacs' with the stride
    v1.5, 'gmacs_v1' with v1, which is None where there is no such choice.
  """
  for name, attention in itertools.product(names, attentions):
    options['attention'] = attention
    if attention.lower() in NONE:
      options['attention'] = None
    plain, layer = None, options['attention'] and find(options['attention'])
    instead = layer and place_of(layer) == AW_CONV
    for aw in (False,) if instead else (False, True):
      model = models.create(name, aw_conv=aw, **options)
      total, v1 = count(model, side)[-1], None
      plain = plain or total
      if getattr(model, 'block', None) == 'bottleneck':
        v1 = count(model.clone(version='v1'), side)[-1]['multiply_adds'] / 1e9
      yield dict(
          network=name,
          attention=attention,
          aw=aw,
          parameters=total['parameters'],
          added=total['parameters'] - plain['parameters'],
          gmacs=total['multiply_adds'] / 1e9,
          gmacs_v1=v1,
      )


def _format(value: Any) -> str:
  if isinstance(value, bool):
    return 'AW' if value else ''
  if isinstance(value, float):
    return f'{value:.3f}'
  return '-' if value is None else text_table.thousands(value)


def main() -> None:
  """Prints the table that is asked for."""
  config = command_line.read_config()
  if config is not None:
    if config.task.name != 'classification':
      raise InputError(
          f'--config is of {config.task.name} ({config.model.name}); what its '
          'modules have is told where a run starts: train.py --dry_run'
      )
    network = models.create(**config.model.to_dict())
    side, channels = config.data.image_size, FLAGS.channels
    print(f'{config.model.name}, one image of {side}x{side}x{channels}:')
    print(text_table.make(count(network, side, channels)))
    return
  if not FLAGS.models or not FLAGS.attention:
    raise InputError('--models and --attention must name at least one each')
  options = command_line.given('num_classes', 'stem')
  table = list(rows(FLAGS.models, FLAGS.attention, FLAGS.side, **options))
  print(text_table.make(table, _format))


if __name__ == '__main__':
  command_line.define_config('Count this network, module by module.')
  networks = ['resnet18', 'resnet50', 'resnet101']
  flags.DEFINE_list('models', networks, 'Networks to compare.')
  flags.DEFINE_list('attention', ['none'], 'Attention modules, or none.')
  flags.DEFINE_integer('num_classes', None, 'Classes (of --models).', 1, MOST)
  flags.DEFINE_string('stem', None, "Such as 'cifar' (of --models).")
  text = 'Height and width (of --models).'
  flags.DEFINE_integer('side', models.IMAGENET_SIDE, text, 1, 2**15)
  flags.DEFINE_integer('channels', 3, 'Of the image (of --config).', 1, MOST)
  command_line.run(main)
