"""What is drawn of which runs."""

import json

import pytest

from awconv_jax import errors
from awconv_jax.tools import plot_curves


def write_run(directory, rows):
  directory.mkdir()
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (directory / 'metrics.jsonl').write_text(lines)
  return str(directory)


@pytest.fixture
def drawn(monkeypatch):
  """Axes of the figures that are closed, instead of closing them."""
  import matplotlib

  matplotlib.use('agg')
  from matplotlib import pyplot

  axes, close = [], pyplot.close
  monkeypatch.setattr(
      pyplot, 'close', lambda f: (axes.extend(f.axes), close(f))
  )
  return axes


def lines_of(axis):
  return {line.get_label(): list(line.get_ydata()) for line in axis.lines}


def test_runs_of_different_tasks_share_a_picture(tmp_path, drawn):
  scenes = write_run(
      tmp_path / 'scenes',
      [{'step': 1, 'train/loss': 2.0}, {'step': 2, 'eval/AP': 0.25}],
  )
  digits = write_run(
      tmp_path / 'digits',
      [{'step': 1, 'train/loss': 3.0, 'eval/loss': 1.0, 'eval/top1': 0.5}],
  )

  picture = plot_curves.plot([scenes, digits], str(tmp_path / 'both.png'))

  with open(picture, 'rb') as file:
    assert file.read(4) == b'\x89PNG'
  panels = {axis.get_title(): lines_of(axis) for axis in drawn}
  assert panels == {
      'loss': {
          'scenes, train': [2.0],
          'digits, train': [3.0],
          'digits, eval': [1.0],
      },
      'top-1 (%)': {'digits, eval': [50.0]},
      'AP (%)': {'scenes, eval': [25.0]},
  }


def test_single_points_are_to_be_seen_and_an_ap_of_no_objects_is_not(
    tmp_path, drawn
):
  rows = [{'step': s, 'eval/AP': ap} for s, ap in ((1, -1.0), (2, 0.5))]
  one = write_run(tmp_path / 'one', [{'step': 1, 'train/loss': 2.0}, *rows])
  two = [{'step': s, 'train/loss': 2.0} for s in (1, 2)]

  plot_curves.plot([one, write_run(tmp_path / 'two', two)], tmp_path / 'a.png')

  markers = {line.get_label(): line.get_marker() for line in drawn[0].lines}
  assert markers == {'one, train': '.', 'two, train': 'None'}
  assert lines_of(drawn[1]) == {'one, eval': [50.0]}


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
  run = write_run(tmp_path / 'run', [{'step': 1, 'train/loss': 2.0}])

  with pytest.raises(errors.InputError, match='--output=.*curves.pgn'):
    plot_curves.plot([run], str(tmp_path / 'curves.pgn'))
