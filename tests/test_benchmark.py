"""The benchmark measures what it says, and refuses to time wrong results."""

import json

import commands
import pytest

from awconv_jax import errors
from awconv_jax.ops import aw_conv
from awconv_jax.tools.benchmark import op


@pytest.fixture
def tiny(monkeypatch):
  monkeypatch.setattr(op, 'SHAPES', ((8, 4),))
  return dict(batches=[2], expansion=4, dtype='float32', seconds=0.0)


def test_the_operation(tiny):
  rows = list(op.run(implementations=['auto', 'map'], **tiny))
  assert [(r.direction, r.implementation) for r in rows] == [
      (direction, name)
      for direction in ('forward', 'both')
      for name in ('plain', 'vmap', 'auto', 'map')
  ]
  for row in rows:
    assert row.milliseconds > 0 and row.temporary_mib >= 0
    assert row.gflops > 0
    assert (row.ratio == 1) == (row.implementation == 'plain')
    assert row.error < 1e-4


def test_a_wrong_form_is_not_timed(tiny, monkeypatch):
  right = aw_conv.IMPLEMENTATIONS['map']

  def wrong(x, kernel, attention, *, residual, **options):
    return right(x, kernel, attention, residual=not residual, **options)

  monkeypatch.setitem(aw_conv.IMPLEMENTATIONS, 'map', wrong)
  with pytest.raises(errors.ReportedError, match='map differs from vmap'):
    list(op.run(implementations=['map'], **tiny))


def test_the_command_names_mistakes_and_measures_a_network(tmp_path):
  tool = ('-m', 'awconv_jax.tools.benchmark')
  for arguments, words in (
      ((), ["''", 'model, op']),
      (('op', '--implementations=mpa'), ["'mpa'", "'map'"]),
      (('op', '--batches=x'), ['--batches']),
      (('op', '--dtype=int8'), ["'int8'", 'float32']),
  ):
    code, _, err = commands.run(*tool, *arguments)
    assert code == 1 and err.startswith('error: ') and err.count('\n') == 1
    assert all(word in err for word in words), err
  output = tmp_path / 'table'
  code, out, err = commands.run(
      *tool,
      'model',
      '--model=resnet18',
      '--side=32',
      '--batches=1',
      '--implementations=auto',
      '--seconds=0',
      f'--output={output}',
  )
  assert code == 0, err
  saved = json.loads(output.with_suffix('.json').read_text())
  assert saved['environment']['backend'] == 'cpu'
  assert [r['variant'] for r in saved['rows']] == ['plain', 'aw:auto']
  for row in saved['rows']:
    assert row['images_per_second'] * row['milliseconds'] == pytest.approx(1e3)
  assert output.with_suffix('.png').stat().st_size > 5000
  assert 'aw:auto' in out
