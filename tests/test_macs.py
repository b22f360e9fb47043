"""MACs from the jaxpr against written-out products, also inside loops."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from awconv_jax import macs
from awconv_jax.ops import aw_conv as op


def total(function, *shapes):
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return sum(macs.count(function, *arguments).values())


def test_a_convolution():
  conv = functools.partial(
      jax.lax.conv_general_dilated,
      window_strides=(2, 2),
      padding='SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=2,
  )
  count = total(conv, (2, 8, 6, 4), (3, 3, 2, 10))
  assert count == (2 * 4 * 3 * 10) * (3 * 3 * 2)


def test_a_matrix_product_and_a_scan_count_every_turn():
  def loop(x, w):
    return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=7)[0]

  assert total(loop, (3, 5), (5, 5)) == 7 * 3 * 5 * 5


def test_a_while_loop_is_refused():
  def loop(x):
    return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ c, x)

  with pytest.raises(NotImplementedError, match='while'):
    total(loop, (3, 3))


@pytest.mark.parametrize('implementation', sorted(op.IMPLEMENTATIONS))
@pytest.mark.parametrize(
    'groups, features, maps', [(1, 5, 2), (8, 8, 1), (8, 16, 1)]
)
def test_an_aw_convolution_is_its_convolution_and_its_modulation(
    implementation, groups, features, maps
):
  options = dict(groups=groups, implementation=implementation)
  shape = 3, 3, 8 // groups, features
  count = total(
      functools.partial(op.aw_conv, **options),
      *((4, 6, 6, 8), shape, (4, 3, 3, maps, features)),
  )
  assert count == 4 * (6 * 6 + 1) * math.prod(shape)


def test_a_fused_aw_convolution_counts_once_of_all_platforms():
  def both(x, kernel, attention):
    run = functools.partial(op.aw_conv, implementation='fused')
    out, pullback = jax.vjp(run, x, kernel, attention)
    return pullback(out)

  count = total(both, (4, 6, 6, 16), (3, 3, 16, 32), (4, 3, 3, 2, 32))
  # Three products. The kernel times the maps for each of the two images; the
  # gradient of the sample's kernel times the maps, and times the kernel.
  assert count == 4 * (3 * 6 * 6 + 4) * (3 * 3 * 16 * 32)


def test_a_condition_around_fused_ones_counts_all_of_its_branches():
  def either(x, kernel, attention):
    fused = functools.partial(
        op.aw_conv, kernel=kernel, attention=attention, implementation='fused'
    )
    return jax.lax.cond(x[0, 0, 0, 0] > 0, fused, lambda x: 2 * fused(x), x)

  count = total(either, (4, 6, 6, 16), (3, 3, 16, 16), (4, 3, 3, 2, 16))
  assert count == 2 * 4 * (6 * 6 + 1) * (3 * 3 * 16 * 16)
