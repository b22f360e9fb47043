"""Tables of parameters and multiply-adds (MACs), counted by this code.

  python -m awconv_jax.tools.complexity
  python -m awconv_jax.tools.complexity --models=wrn_28_10 --attention=none,se
  python -m awconv_jax.tools.complexity --config=configs/digits.py

The first compares networks: each with and without AW-convolutions, and in both
conventions for the stride of a bottleneck (v1.5 in its 3x3, v1 in its first
1x1). MACs are those of convolutions and matrix products for one image, from
the jaxpr; with AW-convolutions that includes the attention branch and forming
K * (1 + A). With --config it is one network, module by module.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import itertools
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp

from awconv_jax import command_line, complexity, models, text_table
from awconv_jax.errors import InputError

FLAGS = flags.FLAGS


@dataclasses.dataclass
class Row:
  """One line of the table.

  Attributes:
    network: its name.
    attention: its name, or 'none'.
    aw: whether its convolutions are AW-convolutions.
    parameters: in all.
    added: parameters more than without AW; 0 without.
    gmacs: 1e9 multiply-adds for one image, stride v1.5.
    gmacs_v1: the same with the stride v1; None where there is no such choice.
  """

  network: str
  attention: str
  aw: bool
  parameters: int
  added: int
  gmacs: float
  gmacs_v1: float | None


def count(
    model: Any, side: int, channels: int = 3
) -> tuple[list[complexity.Row], complexity.Row]:
  """Returns `complexity.rows` of a network for one image; computes nothing.

  Args:
    model: a network of `models.create`.
    side: height and width of the image.
    channels: of the image.
  """
  image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
  variables = models.shapes_of(model, side, channels)
  apply = functools.partial(model.apply, train=False)
  macs = complexity.count_macs(apply, variables, image)
  return complexity.rows(variables['params'], macs)


def rows(
    names: Sequence[str], attentions: Sequence[str], side: int, **options: Any
) -> Iterator[Row]:
  """Counts, and yields a row without AW-convolutions and one with them.

  Args:
    names: of networks.
    attentions: names, or 'none'.
    side: height and width of the image.
    **options: fields of all networks.
  """
  for name, attention in itertools.product(names, attentions):
    options['attention'] = None if attention == 'none' else attention
    parameters = []
    for aw_conv in (False, True):
      model = models.create(name, aw_conv=aw_conv, **options)
      _, total = count(model, side)
      parameters.append(total.parameters)
      v1 = None
      if getattr(model, 'block', None) == 'bottleneck':
        v1 = count(model.clone(version='v1'), side)[1].multiply_adds / 1e9
      yield Row(
          network=name,
          attention=attention,
          aw=aw_conv,
          parameters=total.parameters,
          added=total.parameters - parameters[0],
          gmacs=total.multiply_adds / 1e9,
          gmacs_v1=v1,
      )


def _format(value: Any) -> str:
  """Returns a cell: '-' for what there is not."""
  if value is None:
    return '-'
  if isinstance(value, bool):
    return 'AW' if value else ''
  if isinstance(value, float):
    return f'{value:.3f}'
  return text_table.thousands(value)


def main(arguments: Sequence[str]) -> None:
  """Prints the table that is asked for."""
  command_line.refuse_arguments(arguments)
  if FLAGS.config is not None:
    config = command_line.read_config()
    model = config.model
    network = models.create(**model.to_dict())  # And not a detector.
    side = config.data.image_size
    table = count(network, side, FLAGS.channels)
    print(f'{model.name}, one image of {side}x{side}x{FLAGS.channels}:')
    print(complexity.format_table(*table))
    return
  if not FLAGS.models or not FLAGS.attention:
    raise InputError('--models and --attention must name at least one each')
  options = dict(num_classes=FLAGS.num_classes)
  if FLAGS.stem is not None:
    options['stem'] = FLAGS.stem
  table = list(rows(FLAGS.models, FLAGS.attention, FLAGS.side, **options))
  print(text_table.make([vars(row) for row in table], _format))


if __name__ == '__main__':
  command_line.define_config(
      'Count the network of this config, module by module.'
  )
  flags.DEFINE_list(
      'models', ['resnet18', 'resnet50', 'resnet101'], 'Networks to compare.'
  )
  flags.DEFINE_list('attention', ['none'], 'Attention modules, or none.')
  _integer = functools.partial(flags.DEFINE_integer, lower_bound=1)
  _integer('num_classes', 1000, 'Classes (of --models).')
  flags.DEFINE_string('stem', None, "'imagenet' or 'cifar' (of --models).")
  _integer('side', 224, 'Height and width (of --models).')
  _integer('channels', 3, 'Of the image (of --config).')
  command_line.run(main)
