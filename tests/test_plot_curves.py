"""What is drawn of which runs."""

import json
import pathlib

import numpy as np
import pytest

from awconv_jax import errors, figures
from awconv_jax.tools import plot_curves


def write_run(directory, rows, config=None):
  directory.mkdir(parents=True)
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (directory / 'metrics.jsonl').write_text(lines)
  if config is not None:
    (directory / 'config.json').write_text(json.dumps(config))
  return str(directory)


@pytest.fixture
def drawn(monkeypatch):
  """The figures that are written."""
  kept, save = [], figures.save

  def keep(figure, output):
    kept.append(figure)
    return save(figure, output)

  monkeypatch.setattr(figures, 'save', keep)
  return kept


def lines_of(axis):
  return {line.get_label(): list(line.get_ydata()) for line in axis.lines}


def labels_of(figure):
  return [text.get_text() for text in figure.legends[0].texts]


def test_runs_of_different_tasks_share_a_picture(tmp_path, drawn):
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
  ink = write_run(
      tmp_path / 'ink',
      [
          {'step': s, 'eval/mIoU': 0.25 * s, 'eval/majority_mIoU': 0.125}
          for s in (1, 2)
      ],
  )

  runs = [scenes, digits, ink]
  picture = plot_curves.plot(runs, str(tmp_path / 'all.png'))

  assert pathlib.Path(picture).read_bytes()[:4] == b'\x89PNG'
  axes = [axis for axis in drawn[0].axes if axis.lines]
  assert {axis.get_ylabel(): lines_of(axis) for axis in axes} == {
      'loss': {
          'scenes, train': [2.0, 1.5],
          'digits, train': [3.0],
          'digits, eval': [1.0],
      },
      'top-1 accuracy (%)': {'digits, eval': [50.0]},
      'AP (%)': {'scenes, eval': [25.0]},
      'mIoU (%)': {'ink, eval': [25.0, 50.0], 'majority class': [12.5, 12.5]},
  }
  # A line of a single point is not to be seen without.
  assert [line.get_marker() for line in axes[0].lines] == ['None', '.', 'o']
  assert axes[0].get_xlabel() == 'step'  # As no row says its epoch.
  with pytest.raises(errors.InputError, match='--output=.*curves.pgn'):
    plot_curves.plot([scenes], str(tmp_path / 'curves.pgn'))


def test_a_seed_that_is_repeated_is_a_curve_of_its_own(tmp_path, drawn, capsys):
  rows = [{'step': 1, 'train/loss': 1.0}]
  runs = [
      write_run(tmp_path / f'run{n}', rows, {'seed': seed})
      for n, seed in enumerate((0, 0, 1))
  ]
  plot_curves.plot(runs, str(tmp_path / 'x.svg'))
  assert labels_of(drawn[0]) == [
      'run (2 seeds), train, mean ± std',
      'run1, train',
  ]
  assert 'run1 repeats seed 0' in capsys.readouterr().out


def test_seeds_are_a_mean_in_a_band_over_epochs(tmp_path, drawn):
  rng, runs, losses = np.random.default_rng(0), [], []
  for seed in range(3):
    losses.append(rng.uniform(1, 2, 40))
    rows = [
        {'step': 10 * n, 'train/epoch': n / 2, 'train/loss': loss}
        for n, loss in enumerate(losses[-1], start=1)
    ]
    config = {'seed': seed, 'model': {'width': 4}}
    runs.append(write_run(tmp_path / f'aw_s{seed}', rows, config))
  other = {'seed': 0, 'model': {'width': 8}}
  runs.append(write_run(tmp_path / 'wide', rows[:30], other))

  plot_curves.plot(
      runs, str(tmp_path / 'x.pdf'), panels=['loss'], width=figures.COLUMN
  )
  plot_curves.plot(runs, str(tmp_path / 'y.svg'), bands=False)

  (axis,) = (axis for axis in drawn[0].axes if axis.lines)
  assert drawn[0].get_figwidth() == figures.COLUMN
  lines = {line.get_label(): line for line in axis.lines}
  assert [*lines] == [
      'aw (3 seeds), train, as it is',
      'aw (3 seeds), train, smoothed, mean ± std',
      'wide, train, as it is',
      'wide, train, smoothed',
  ]
  raw, mean = [*lines.values()][:2]
  np.testing.assert_allclose(raw.get_ydata(), np.mean(losses, 0))
  np.testing.assert_allclose(mean.get_xdata(), np.arange(1, 41) / 2)
  # Five values around each, and fewer at the ends.
  smooth = [[*map(np.mean, (row[:1], row[:3], row[:5]))] for row in losses]
  np.testing.assert_allclose(mean.get_ydata()[:3], np.mean(smooth, 0))
  band = axis.collections[0].get_paths()[0].vertices
  spread = np.std(np.array(smooth)[:, 2], ddof=1)
  ends = band[np.isclose(band[:, 0], 1.5), 1]
  np.testing.assert_allclose(np.ptp(ends), 2 * spread, rtol=1e-6)
  assert axis.get_xlabel() == 'epoch'
  assert axis.child_axes[0].get_xlabel() == 'step'
  names = {label.partition(',')[0] for label in labels_of(drawn[1])}
  assert names == {'aw_s0', 'aw_s1', 'aw_s2', 'wide'}


def test_odd_and_long_names_are_drawn_without_a_warning(tmp_path, recwarn):
  row = {'step': 1, 'train/loss': 2.0}
  run = write_run(tmp_path / ('\t' + 'x' * 200), [row])
  plot_curves.plot([run], str(tmp_path / 'long.png'))
  assert not recwarn.list


def test_every_run_has_a_label_of_its_own(tmp_path, drawn):
  names = 'a/_run', 'b/_run', 'b/$x^$'
  for name in names:
    write_run(tmp_path / name, [{'step': 1, 'train/loss': 2.0}])
  runs = [str(tmp_path / name) for name in names]
  plot_curves.plot(runs, str(tmp_path / 'all.png'))
  plot_curves.plot(runs[:1], str(tmp_path / 'one.png'))
  assert [labels_of(figure) for figure in drawn] == [
      [f'{name}, train' for name in names],
      ['./_run, train'],
  ]


def test_a_panel_that_there_is_not_is_one_line(tmp_path):
  run = write_run(tmp_path / 'run', [{'step': 1, 'train/loss': 2.0}])
  for panels, words in (['los'], "'loss'"), (['AP'], 'nothing of AP'):
    with pytest.raises(errors.InputError, match=words):
      plot_curves.plot([run], str(tmp_path / 'x.png'), panels=panels)
