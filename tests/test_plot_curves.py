"""What is drawn of which runs."""

import json
import pathlib

from matplotlib import pyplot
import pytest

from awconv_jax import errors
from awconv_jax.tools import plot_curves


def write_run(directory, rows):
  directory.mkdir()
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (directory / 'metrics.jsonl').write_text(lines)
  return str(directory)


def lines_of(axis):
  return {line.get_label(): list(line.get_ydata()) for line in axis.lines}


def test_runs_of_different_tasks_share_a_picture(tmp_path, monkeypatch):
  drawn = []  # Axes of the figures, instead of closing them.
  monkeypatch.setattr(pyplot, 'close', lambda f: drawn.extend(f.axes))
  scenes = write_run(
      tmp_path / 'scenes',
      # -1 is of a split without any object.
      [{'step': 1, 'train/loss': 2.0, 'eval/AP': -1.0}]
      + [{'step': 2, 'train/loss': 1.5}, {'step': 2, 'eval/AP': 0.25}],
  )
  digits = write_run(
      tmp_path / 'digits',
      [{'step': 1, 'train/loss': 3.0, 'eval/loss': 1.0, 'eval/top1': 0.5}],
  )

  picture = plot_curves.plot([scenes, digits], str(tmp_path / 'both.png'))

  assert pathlib.Path(picture).read_bytes()[:4] == b'\x89PNG'
  panels = {axis.get_title(): lines_of(axis) for axis in drawn}
  assert panels == {
      'loss': {
          'scenes, train': [2.0, 1.5],
          'digits, train': [3.0],
          'digits, eval': [1.0],
      },
      'top-1 (%)': {'digits, eval': [50.0]},
      'AP (%)': {'scenes, eval': [25.0]},
  }
  # A line of a single point is not to be seen without.
  markers = [line.get_marker() for line in drawn[0].lines]
  assert markers == ['None', '.', '.']
  with pytest.raises(errors.InputError, match='--output=.*curves.pgn'):
    plot_curves.plot([scenes], str(tmp_path / 'curves.pgn'))


def test_odd_and_long_names_are_drawn_without_a_warning(tmp_path, recwarn):
  row = {'step': 1, 'train/loss': 2.0}
  run = write_run(tmp_path / ('\t' + 'x' * 200), [row])
  plot_curves.plot([run], str(tmp_path / 'long.png'))
  assert not recwarn.list


def test_every_run_has_a_label_of_its_own(tmp_path, monkeypatch):
  figures = []
  monkeypatch.setattr(pyplot, 'close', figures.append)
  names = 'a/_run', 'b/_run', 'b/$x^$'
  for name in names:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write_run(tmp_path / name, [{'step': 1, 'train/loss': 2.0}])
  runs = [str(tmp_path / name) for name in names]
  plot_curves.plot(runs, str(tmp_path / 'all.png'))
  plot_curves.plot(runs[:1], str(tmp_path / 'one.png'))
  labels = [[t.get_text() for t in f.legends[0].texts] for f in figures]
  assert labels == [[f'{name}, train' for name in names], ['./_run, train']]
