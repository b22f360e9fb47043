"""What 'auto' stands for, and the memory that the forms are held to."""

import functools
import warnings

from aw_conv_cases import BASE, CASES, draw, floats, plain_conv, with_gradients
import jax
import layer_cases
import naive
import numpy as np
import pytest

from awconv_jax.ops import aw_conv as op
from awconv_jax.ops.aw_conv import aw_conv, forms, loops

CASE = BASE | dict(n=7, size=(5, 5), channels=8, g=4)


def pulled(function, arrays):
  """Returns the value, and the gradients of half its squared norm."""
  with jax.enable_x64(True):
    run = jax.jit(with_gradients(function))
    return jax.tree.map(np.asarray, run(*arrays))


def close(own, expected):
  jax.tree.map(lambda a, b: layer_cases.close(a, b, 1e-9), own, expected)


@pytest.mark.parametrize(
    'kernel_shape, groups, positions, on_cpu, elsewhere',
    [
        ((3, 3, 64, 64), 1, 56 * 56, 'loop_conv', 'im2col'),
        ((3, 3, 512, 512), 1, 400, 'loop_dot', 'im2col'),
        ((3, 3, 4, 128), 32, 56 * 56, 'map', 'im2col'),
        ((1, 1, 64, 256), 1, 56 * 56, 'map', 'im2col'),
        ((3, 3, 1, 96), 96, 56 * 56, 'taps', 'taps'),
    ],
)
def test_the_choice(kernel_shape, groups, positions, on_cpu, elsewhere):
  assert op.choose(kernel_shape, groups, positions, 'cpu') == on_cpu
  assert op.choose(kernel_shape, groups, positions, 'gpu') == elsewhere


def test_an_unmeasured_backend_says_so_and_bounds_its_memory(monkeypatch):
  arrays = draw(CASE)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    expected = pulled(aw_conv, arrays)
  seen = {}

  def spy(x, kernel, attention, options):
    seen['chunk'] = options.chunk
    return forms.im2col(x, kernel, attention, options)

  monkeypatch.setitem(op.IMPLEMENTATIONS, 'im2col', spy)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  with pytest.warns(UserWarning, match="nothing is measured on 'gpu'"):
    close(pulled(aw_conv, arrays), expected)
  assert seen['chunk'] is None  # All of it is far below the bound.
  # Patches and kernel of two samples in float64.
  own = 8 * (25 * 9 * 8 + 9 * 8 * 4)
  monkeypatch.setattr(op, '_UNMEASURED_BYTES', 2 * own + 1)
  with pytest.warns(UserWarning):
    close(pulled(aw_conv, arrays), expected)
  assert seen['chunk'] == 2


@pytest.mark.parametrize('implementation', op.CHUNKED)
@pytest.mark.parametrize('chunk', [3, 9])
def test_chunks_change_nothing(implementation, chunk):
  arrays = draw(CASE)
  run = functools.partial(aw_conv, implementation=implementation, chunk=chunk)
  own = pulled(run, arrays)
  close(own[0], naive.aw_conv(*arrays))
  close(own, pulled(functools.partial(aw_conv, implementation='map'), arrays))


def temporary_bytes(function, arrays):
  lowered = jax.jit(with_gradients(function)).lower(*arrays)
  return lowered.compile().memory_analysis().temp_size_in_bytes


def test_chunks_bound_the_memory():
  arrays = floats(CASE | dict(n=16, size=(16, 16)))
  run = functools.partial(aw_conv, implementation='im2col')
  whole = temporary_bytes(run, arrays)
  assert temporary_bytes(functools.partial(run, chunk=2), arrays) < whole / 3


@pytest.mark.parametrize('channels, side', [(64, 28), (256, 14)])
def test_auto_takes_little_more_memory_than_a_plain_convolution(channels, side):
  shapes = [
      (8, side, side, channels),
      (3, 3, channels, channels),
      (8, 3, 3, channels // 16, channels),
  ]
  arrays = [jax.ShapeDtypeStruct(s, 'float32') for s in shapes]
  most = 1.5 * temporary_bytes(plain_conv, arrays)
  assert temporary_bytes(aw_conv, arrays) <= most


def test_a_form_that_takes_no_chunks_says_so():
  with pytest.raises(
      ValueError, match="chunk=2: 'map' takes no .*im2col, taps"
  ):
    aw_conv(*draw(CASE), chunk=2, implementation='map')


@pytest.mark.parametrize('implementation', ['loop_dot', 'loop_conv'])
def test_backward_in_blocks_of_input_channels(implementation, monkeypatch):
  arrays = draw(CASE)
  run = functools.partial(aw_conv, implementation=implementation)
  expected = pulled(functools.partial(aw_conv, implementation='map'), arrays)
  size = 9 * 8 * 4 * 8
  for runs, blocks in ((8, 8), (1, 1), (4, 2)):
    monkeypatch.setattr(loops, '_BLOCK_BYTES', size / blocks)
    assert loops._count_blocks(arrays[1], runs) == blocks
  close(pulled(run, arrays), expected)


def test_depthwise_taps_are_no_matrix_products():
  arrays = draw(BASE | CASES['depthwise_two_outputs_each'])
  run = functools.partial(aw_conv, groups=4, implementation='taps')
  # One for K * (1 + A), none for the taps.
  assert str(jax.make_jaxpr(run)(*arrays)).count('= dot_general') == 1
  close(pulled(run, arrays)[0], naive.aw_conv(*arrays, groups=4))
