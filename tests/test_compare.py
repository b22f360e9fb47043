"""Studies: which runs there are, how they are trained, what is told of them."""

import csv
import fcntl
import json
import math
import os
import pathlib
import signal
import sys
import threading
import time

import commands
import numpy as np
import pytest
from scipy import stats
from watched_run import assert_same_runs

from awconv_jax import command_line, errors, figures
from awconv_jax.tools import (
    comparison,
    comparison_figures,
    comparison_files,
    step_times,
    study,
    study_runner,
)
from awconv_jax.train import settings

FAKE = [sys.executable, '-S', str(pathlib.Path(__file__).parent)]
FAKE[-1] += '/fake_trainer.py'
TEXT = f"""
config = '{commands.ROOT}/tests/tiny.py:aw_conv=false'
metric = 'top1'
baseline = 'plain'
seeds = 3
[overrides]
num_epochs = 1
model.width = 8
[variants.plain]
[variants.AW-SE]
model.aw_conv = true
model.attention = 'se'
model.aw_options = {{reduction = 4}}
[variants."wide (16)"]
model.width = 16
data.augment = [['flip', {{}}]]
"""
NAMES = 'plain', 'AW-SE', 'wide (16)'
# No step in common with others, and what no axis can show.
ROWS = '{"step": 9, "eval/top1": Infinity}\n'
PARTS = '{"host": {}, "config": {}, "starts": [{}], "metrics": {"top1": null}}'
# By variant and seed: what comes out.
VALUES = {
    'plain': (0.5, 0.6, 0.52),
    'AW-SE': (0.55, 0.66, 0.53),
    'wide (16)': (0.5, 0.7, 0.6),
}


@pytest.fixture
def write(tmp_path):
  """Writes the file of a study; returns its path."""

  def write(text=TEXT):
    path = tmp_path / 'x.toml'
    path.write_text(text)
    return str(path)

  return write


@pytest.fixture(scope='module')
def completed(tmp_path_factory):
  """The study, and its runs in a directory that is to be named."""
  path = tmp_path_factory.mktemp('study') / 'x.toml'
  path.write_text(TEXT)
  told = study.read(str(path))
  return told, study.runs(told, 'WORKDIR')


@pytest.fixture
def prepared(tmp_path, completed):
  """Runs in a directory, and what the stand-in needs of them."""
  told, found = completed
  found = [
      run._replace(
          path=(path := tmp_path / 'study' / run.variant / run.path.name),
          flags=(*run.flags, f'--workdir={path}'),
      )
      for run in found
  ]
  for run in found:
    run.path.parent.mkdir(parents=True, exist_ok=True)
    config = json.dumps(run.config.to_dict())
    run.path.with_name(f'{run.path.name}.config').write_text(config)
    does(run, VALUES[run.variant][run.seed])
  return told, found


def does(run, what):
  run.path.with_name(f'{run.path.name}.does').write_text(str(what))


def starts(run):
  path = run.path.with_name(f'{run.path.name}.starts')
  return path.read_text().splitlines() if path.exists() else []


def train(found, **options):
  pending = [run for run in found if not study.is_finished(run)]
  env = study_runner.environment(
      found[0].path.parents[1], options.get('jobs', 1)
  )
  return study_runner.train(pending, env, trainer=FAKE, **options)


def outcomes(told, found):
  variants = {name: [] for name in told.variants}
  for run in found:
    done = study.is_finished(run)
    one = comparison.outcome(run.path, run.seed, 'top1', done)
    variants[run.variant].append(one)
  return variants


def test_runs_are_all_variants_of_a_seed_and_then_the_next(completed, tmp_path):
  told, found = completed
  assert [(run.variant, run.seed) for run in found] == [
      (name, seed) for seed in range(3) for name in NAMES
  ]
  se, wide = found[1].config, found[-1].config
  assert (se.model.aw_conv, se.model.attention, se.seed) == (True, 'se', 0)
  assert se.model.aw_options.reduction == 4 and se.model.width == 8
  assert (wide.model.width, wide.seed, wide.num_epochs) == (16, 2, 1.0)
  # The flags alone give that config.
  given = dict(flag[2:].split('=', 1) for flag in found[-1].flags)
  assert given.pop('workdir') == 'WORKDIR/wide (16)/seed2'
  assert given.pop('config') == told.config
  again = settings.complete(command_line.load_config(told.config), given)
  assert again.to_dict() == wide.to_dict()
  some = study.chosen(found, ['wide (16)', 'plain'], [2, 0])
  assert some == [found[i] for i in (8, 6, 2, 0)]
  assert study.chosen(found) == found


@pytest.mark.parametrize(
    'path', commands.ROOT.glob('configs/studies/*.toml'), ids=lambda p: p.stem
)
def test_the_studies_of_the_repository_are_studies(path, monkeypatch):
  monkeypatch.chdir(commands.ROOT)
  told = study.read(str(path))
  found = study.runs(told, 'x')
  assert len(found) == len(told.variants) * len(told.all_seeds())
  assert {run.variant for run in found} == {*told.variants} > {told.baseline}


@pytest.mark.parametrize(
    'old, new, words',
    [
        ('seeds = 3', 'sedes = 3', ["did you mean 'seeds'"]),
        ('seeds = 3', 'seeds = []', ['study.seeds=() must name one']),
        ('seeds = 3', 'seeds = [1, 1]', ['none twice']),
        ('seeds = 3', 'seeds = 20240501', ['a list: [20240501]']),
        ("'plain'", "'plane'", ["'plane'", "did you mean 'plain'"]),
        ('[variants.plain]', '[variants."a/b"]\n[variants.plain]', ["'a/b'"]),
        ('model.width = 16', 'model.widht = 1', ["'wide (16)'", 'width']),
        ('model.width = 16', 'model.width = -1', ["'wide (16)'", 'width=-1']),
        ('"wide (16)"', '"results.md"', ['name of a file of results']),
        ('"wide (16)"', '"a,b"', ["'a,b'"]),
        ('"wide (16)"', 'x' * 101, ['at most 100']),
        ('"wide (16)"', f'"{100 * chr(0x5B57)}"', ['255 bytes']),
        ('"wide (16)"', 'PLAIN', ['one folder']),
        ('"wide (16)"', '"plain "', ['no space at the ends']),
        (
            '[variants.plain]',
            '[variants."\ud558"]\n[variants."\u1112\u1161"]\n[variants.plain]',
            ['one folder'],
        ),
        (TEXT[TEXT.index('[variants.plain]') :], '[variants]', ['variants={}']),
        (
            'model.width = 16',
            'model.width = 16\n"model.width" = 8',
            ['config.model.width is set twice in wide (16)'],
        ),
        ("'se'", "'condconv'", ["'AW-SE'", 'where AW-convolutions would']),
        ('model.width = 16', 'seed = 1', ["'wide (16)'", 'study.seeds']),
        ('model.width = 16\ndata', '# data', ["'wide (16)'", "as 'plain'"]),
        ('[variants.plain]', '[variants.plain', ['cannot be read']),
        ('tiny.py', 'tini.py', ['did you mean', 'tini.py']),
    ],
)
def test_what_is_wrong_with_a_study_is_one_line(write, old, new, words):
  path = write(TEXT.replace(old, new, 1))
  with pytest.raises(errors.InputError) as caught:
    study.runs(study.read(path), 'x')
  lines = str(caught.value).split('\n')
  assert len(lines) == 1 + ('sedes' in new)  # And seeds are missing, then.
  for word in words:
    assert word in str(caught.value)


def test_one_that_fails_is_named_and_the_others_go_on(prepared, capsys):
  told, found = prepared
  does(found[4], 'fail')
  failed = train(found, jobs=2, result=lambda run: 'ok')
  assert failed == [
      f'AW-SE, seed 1: exit code 1, error: it cannot be ({found[4].path}.log)'
  ]
  assert [study.is_finished(run) for run in found] == [n != 4 for n in range(9)]
  lines = capsys.readouterr().out.splitlines()
  assert sum(line.startswith('started ') for line in lines) == 9
  assert sum(line.startswith('finished ') for line in lines) == 8
  # After each end but the last, by how long those took that finished.
  assert sum('left, about' in line for line in lines[1:]) >= 7
  # Again: that one alone, with its flags, and its share of the memory.
  does(found[4], 0.66)
  assert train(found, jobs=2) == []
  assert [len(starts(run)) for run in found] == [1 + (n == 4) for n in range(9)]
  assert '--config.model.attention=se' in starts(found[4])[0]
  (one,) = outcomes(told, found[4:5])['AW-SE']
  assert one.value == 0.66 and one.facts['starts'][0]['jax'] == '0.450'


def test_what_ended_a_run_is_of_its_last_start_and_a_log_that_cannot_be(
    prepared, capsys
):
  _, found = prepared
  does(found[0], 'fail')
  train(found[:1])
  assert study_runner.last_error(found[0]) == 'error: it cannot be'
  does(found[0], 'vanish')
  (line,) = train(found[:1])
  assert 'exit code 3, without an error' in line
  study_runner.log_of(found[1]).mkdir()
  failed = train(found[1:3])
  assert failed == [f'{found[1]}: {found[1].path}.log: Is a directory']
  assert study.is_finished(found[2])


def test_sigterm_lets_runs_save(write, tmp_path):
  """It would end at once; as PID 1 of a container it would not even hear it."""
  child = (
      'import sys; print("begun", flush=True); sys.stdin.read(); '
      'print("saved", flush=True)'
  )
  program = f"""
import runpy, sys
from awconv_jax.tools import study_runner
study_runner.train.__kwdefaults__['trainer'] = (
    sys.executable, '-Sc', {child!r})
sys.argv = ['compare', '--study={write()}', '--workdir={tmp_path}']
runpy.run_module('awconv_jax.tools.compare', run_name='__main__')
"""
  process, log = commands.start('-c', program), tmp_path / 'plain/seed0.log'
  while not (log.exists() and 'begun' in log.read_text()):
    assert process.poll() is None, process.communicate()
    time.sleep(0.01)
  process.terminate()
  out, _ = process.communicate()
  assert process.returncode == 143 and '1 runs save, and end' in out
  assert log.read_text().endswith('saved\n')


def test_what_was_set_stays(monkeypatch, tmp_path):
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
  made = study_runner.environment(tmp_path, 4)
  assert made['JAX_COMPILATION_CACHE_DIR'] == str(tmp_path / '.jax_cache')
  assert made['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '0.225'
  assert 'XLA_PYTHON_CLIENT_MEM_FRACTION' not in study_runner.environment(
      tmp_path, 1
  )
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.05')
  made = study_runner.environment(tmp_path, 4)
  assert made['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '0.05'


def test_a_run_of_another_config_is_named(prepared):
  _, found = prepared
  train(found[:1])
  with found[0].config.unlocked():
    found[0].config.model.width = 4
  try:
    with pytest.raises(errors.InputError, match='width is 8 there and 4 here'):
      study.is_finished(found[0])
  finally:
    with found[0].config.unlocked():
      found[0].config.model.width = 8


def test_a_longer_study_makes_its_runs_longer(prepared):
  _, found = prepared
  train(found[:1])
  longer = settings.complete(found[0].config, {'config.num_epochs': '2'})
  assert not study.is_finished(found[0]._replace(config=longer))


def test_no_two_processes_train_one_run(prepared, capsys):
  _, found = prepared
  os.mkfifo(pipe := found[0].path.with_name('seed0.wait'))
  found[0].path.mkdir()
  with study.claimed(found[0].path.parents[1]):
    with pytest.raises(errors.InputError, match='another `compare` under way'):
      with study.claimed(found[0].path.parents[1]):
        pass
  with (found[0].path / '.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    ended = []
    thread = threading.Thread(target=lambda: ended.append(train(found[:2])))
    thread.start()
    while thread.is_alive() and not any(map(starts, found[:2])):
      time.sleep(0.01)
    first = [len(starts(run)) for run in found[:2]]
  while thread.is_alive():  # It waits for a reader.
    try:
      os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
      time.sleep(0.01)
  thread.join()
  assert first == [0, 1]  # The other comes first.
  assert ended == [[]] and len(starts(found[0])) == 1


@pytest.mark.parametrize('n', [2, 3, 5, 12])
def test_intervals_are_those_of_scipy(n):
  rng = np.random.default_rng(n)
  one, two = rng.normal(0.8, 0.02, (2, n))
  found = comparison.interval(list(one))
  np.testing.assert_allclose(found.mean, np.mean(one))
  np.testing.assert_allclose(found.std, np.std(one, ddof=1))
  want = stats.t.interval(0.95, n - 1, np.mean(one), stats.sem(one))
  np.testing.assert_allclose((found.low, found.high), want)
  apart = comparison.interval(list(one - two))
  want = stats.ttest_rel(one, two).confidence_interval(0.95)
  np.testing.assert_allclose((apart.low, apart.high), want)


def test_of_equal_values_there_is_no_interval():
  assert comparison.interval([0.5, 0.5]) == (2, 0.5, 0.0, None, None)


def test_of_one_value_there_is_no_interval():
  assert comparison.interval([0.5])[1:] == (0.5, None, None, None)
  assert comparison.interval([])[1:] == (None, None, None, None)


def of(**values):
  return {
      name: [
          comparison.Outcome(
              f'{name}/{seed}', seed, v, 3, '' if v else 'why', {}
          )
          for seed, v in enumerate(row)
      ]
      for name, row in values.items()
  }


def test_differences_are_of_pairs_of_a_seed():
  rows = comparison.table(of(a=[0.5, 0.6, 0.7], b=[0.6, None, 0.9]), 'a')
  base, other = rows
  assert (base['n'], base['difference'], base['pairs']) == (3, None, None)
  assert (other['n'], other['pairs']) == (2, 2)
  assert math.isclose(other['difference'], 0.15)
  with_gap = comparison.table(of(a=[None, 0.6], b=[0.6, 0.9]), 'a')[1]
  assert (with_gap['n'], with_gap['pairs']) == (2, 1)
  half = stats.t.ppf(0.975, 1) * np.std([0.1, 0.2], ddof=1) / np.sqrt(2)
  assert math.isclose(other['difference_high'], 0.15 + half)


def test_what_does_not_count_is_said(prepared):
  told, found = prepared
  does(found[1], 'nan')
  train(found[:7])
  (found[6].path / 'finished.json').unlink()  # As if it were under way.
  there = outcomes(told, found)
  rows = comparison.table(there, 'plain')
  stale = dict(variants={}, batch_size=8)  # All were of other configs.
  said = comparison_files.notes(rows, there, 'top1', 'plain', stale)
  assert not any(note.startswith('Steps') for note in said)
  (line,) = [note for note in said if note.startswith('Not counted')]
  assert line.startswith('Not counted, 4 of 9: ')
  for run, why in (
      (found[1], 'ended with top1 nan'),
      (found[6], 'not at its end; it is at step 3'),
  ):
    assert f'{run.path}: {why}' in line
  assert f'{found[7].path}, {found[8].path}: not begun' in line
  assert any('5 runs by commit abc (code 123) on 4 x tpu v9' in n for n in said)


def test_the_tool_writes_tables_and_figures(
    prepared, write, tmp_path, monkeypatch
):
  told, found = prepared
  does(found[8], 'fail')
  train(found, jobs=4)
  workdir = tmp_path / 'study'
  times = dict(milliseconds=2.0, ratio=1.25, low=1.2, high=1.5)
  made_by = dict(commit=None, code='1', devices=1, device='cpu', jax='1')
  timed = dict.fromkeys(('plain', 'AW-SE', 'wide (16)'), times)
  held = dict(variants=timed, baseline='plain', batch_size=8)
  held['made_by'] = made_by | dict(python='3')
  held['configs'] = {run.variant: run.config.to_dict() for run in found}
  held['configs']['wide (16)']['model']['width'] = 32  # It was another then.
  (workdir / 'times.json').write_text(json.dumps(held))
  configs = {run.variant: run.config for run in found}
  others = step_times.still(held, configs, 'AW-SE')  # Ratios to plain.
  assert others['variants']['AW-SE'] == dict(milliseconds=2.0)
  monkeypatch.setenv('HOME', os.path.dirname(write()))
  flags = '--study=~/x.toml', '--workdir=~/study', '--report'
  code, out, err = commands.tool('compare', *flags)
  assert (code, err) == (0, '')
  table = (workdir / 'results.md').read_text()
  assert table in out
  cells = [line.split('|')[1:-1] for line in table.splitlines() if '|' in line]
  cells = [[cell.strip() for cell in line] for line in cells]
  half = stats.t.ppf(0.975, 2) * stats.sem([5, 6, 1])
  ends = f'[{4 - half:+.2f}, {4 + half:+.2f}]'
  assert cells[0] == [
      *('variant', 'n', 'top1 (%)', 'against plain (points)', 'parameters'),
      *('MMACs', 'step (ms)', 'x plain'),
  ]
  assert cells[3] == [
      *('AW-SE', '3', '58.00 ± 7.00', f'+4.00 {ends}', '1,008', '2.00'),
      *('2.0', '1.25 [1.20, 1.50]'),
  ]
  assert 'commit unknown (code 1)' in table
  assert cells[4][-2:] == ['-', '-']
  line = 'wide (16)/seed2: not begun: error: it cannot be'
  assert f'Not counted, 1 of 9: {line}.' in table
  with (workdir / 'results.csv').open() as file:
    rows = {row['variant']: row for row in csv.DictReader(file)}
  assert float(rows['AW-SE']['difference']) == pytest.approx(0.04)
  told = json.loads((workdir / 'results.json').read_text())
  assert told['configs']['wide (16)']['model']['width'] == 16
  assert [run['path'] for run in told['runs'][:2]] == [
      'plain/seed0',
      'plain/seed1',
  ]
  tex = (workdir / 'results.tex').read_text()
  assert r'& step (ms) & $\times$ plain \\' in tex
  assert f'% Not counted, 1 of 9: {line}.' in tex
  assert r'AW-SE & 3 & 58.00 $\pm$ 7.00 & $+$4.00 [$-$' in tex
  for name in ('results', 'curves'):
    assert (workdir / f'{name}.png').read_bytes()[:4] == b'\x89PNG'
    assert (workdir / f'{name}.pdf').read_bytes()[:4] == b'%PDF'


def test_steps_take_turns_and_ratios_are_of_a_turn(completed, monkeypatch):
  """What slows all turns alike changes no ratio."""
  _, found = completed
  now, calls = [0.0], []

  def step(config, batches):
    del batches
    name = next(run.variant for run in found if run.config is config)

    def take(number):
      calls.append(name)
      turn = (len(calls) + 2) // 6  # The first is that of single steps.
      slower = 1 + turn % 3
      now[0] += number * slower * (0.25 if name == 'AW-SE' else 0.1)

    return take

  monkeypatch.setattr(step_times, '_step', step)
  monkeypatch.setattr(step_times.time, 'perf_counter', lambda: now[0])
  configs = {run.variant: run.config for run in found[: len(NAMES)]}
  times = step_times.measure(configs, 'plain')
  held = times['variants']
  assert [held[name]['ratio'] for name in NAMES] == pytest.approx([1, 2.5, 1])
  assert held['AW-SE']['turns'] >= step_times.TURNS
  rest = calls[len(NAMES) :]  # After the first of each, which is slower.
  assert rest[:6] == [name for name in NAMES for _ in range(2)]
  assert times['batch_size'] == found[0].config.batch_size


@pytest.mark.slow
def test_the_tool_measures_steps(write, tmp_path, monkeypatch):
  monkeypatch.setattr(step_times, 'SECONDS', 0.1)
  flags = f'--study={write()}', f'--workdir={tmp_path}/runs'
  only = '--only=plain,AW-SE'
  code, out, err = commands.tool('compare', *flags, '--time', only)
  assert (code, err) == (0, '')
  held = json.loads((tmp_path / 'runs/times.json').read_text())
  assert {*held['variants']} == {'plain', 'AW-SE'}
  assert all(v['milliseconds'] > 0 for v in held['variants'].values())
  assert 'compiled AW-SE in ' in out


def test_runs_that_there_are_are_compared_without_a_study(
    prepared, tmp_path, monkeypatch
):
  monkeypatch.setattr(figures, 'save', lambda figure, output: output)
  _, found = prepared
  train([run for run in found if run.variant in NAMES[:2]], jobs=4)
  places = []
  for run in found:
    if run.variant in NAMES[:2]:
      places.append(f'{tmp_path}/{run.variant}_s{run.seed}')
      run.path.rename(places[-1])
  names = ','.join(places)
  # From before it was written; killed; from before there was an option.
  (tmp_path / 'AW-SE_s1/finished.json').unlink()
  (tmp_path / 'AW-SE_s2/finished.json').unlink()
  row = {'step': 3, 'eval/top1': 0.5, 'train/epoch': 0.5}
  (tmp_path / 'AW-SE_s2/metrics.jsonl').write_text(json.dumps(row) + '\n')
  config = json.loads((tmp_path / 'plain_s2/config.json').read_text())
  del config['shard_state']
  (tmp_path / 'plain_s2/config.json').write_text(json.dumps(config))
  code, out, err = commands.tool(
      'compare', f'--runs={names}', f'--workdir={tmp_path}/out'
  )
  assert (code, err) == (0, '')
  rows = [line.split('|')[1:5] for line in out.splitlines() if '|' in line]
  assert [cell.strip() for cell in rows[2][:2]] == ['plain', '3']
  assert [cell.strip() for cell in rows[3][:2]] == ['AW-SE', '2']
  assert 'AW-SE_s2: not at its end; it is at step 3.' in out
  assert 'Without finished.json, so that' in out
  assert f'end: {tmp_path}/AW-SE_s1.' in out


@pytest.mark.parametrize(
    'flags, words',
    [
        ('--runs=a --jobs=2', '--jobs goes with --study, not with --runs'),
        ('--study=a --time --report', '--time does nothing with --report'),
        ('--study=a --only=b --report', '--only does nothing'),
        ('--study=a --only=', '--only= names none'),
        ('--study=a --seeds=', '--seeds= names none'),
        ('--study=a --baseline=', '--baseline= names none'),
        ('--runs=', 'either --study or --runs'),
        ('--study=a --runs=b', 'either --study or --runs'),
    ],
)
def test_flags_that_would_do_nothing_are_refused(flags, words):
  code, _, err = commands.tool('compare', '--workdir=x', *flags.split())
  assert code == 1 and words in err and err.count('\n') == 1


def test_a_report_against_another_and_no_start_beside_runs_of_another_config(
    prepared, write, tmp_path, monkeypatch
):
  monkeypatch.setattr(figures, 'save', lambda figure, output: output)
  train(prepared[1], jobs=4)
  workdir = f'--workdir={tmp_path}/study'
  flags = f'--study={write()}', workdir, '--report', '--baseline=AW-SE'
  code, out, err = commands.tool('compare', *flags)
  assert (code, err) == (0, '') and 'against AW-SE (points)' in out
  code, _, err = commands.tool('compare', *flags[:3], '--baseline=SE')
  assert code == 1 and "'SE'" in err and err.count('\n') == 1
  changed = write(TEXT.replace('reduction = 4', 'reduction = 8'))
  flags = f'--study={changed}', workdir, '--only=plain'
  code, out, err = commands.tool('compare', *flags)
  assert code == 1 and 'trained with another config' in err and not out


@pytest.mark.parametrize(
    'name, text, words',
    [
        ('times.json', '{"a"', 'measure again with --time'),
        ('times.json', '{}', 'measure again with --time'),
        ('AW-SE/seed1/finished.json', '{"config"', 'start the run again'),
        ('AW-SE/seed1/finished.json', '{"config": {}}', 'start the run again'),
        ('AW-SE/seed1/finished.json', PARTS, 'start the run again'),
        ('times.json', '{"variants": {}, "made_by": {}}', 'measure again'),
        ('AW-SE/seed1/metrics.jsonl', '{"step": 1}', None),  # Its end is kept.
        ('plain/seed0/metrics.jsonl', ROWS, None),  # Cannot be drawn at all.
    ],
)
def test_files_that_are_damaged(
    name, text, words, prepared, write, tmp_path, monkeypatch
):
  monkeypatch.setattr(figures, 'save', lambda figure, output: output)
  told, found = prepared
  found = [run for run in found if run.variant in NAMES[:2]]
  train(found, jobs=4)
  before = comparison.table(outcomes(told, found), 'plain')
  workdir = tmp_path / 'study'
  (workdir / name).write_text(text)
  flags = f'--study={write()}', f'--workdir={workdir}', '--report'
  code, _, err = commands.tool('compare', *flags)
  if words is None:
    assert (code, err) == (0, '')
    assert comparison.table(outcomes(told, found), 'plain') == before
  else:
    assert code == 1 and err.count('\n') == 1
    assert f'{name} is damaged' in err and words in err


def test_a_figure_without_differences_has_one_panel():
  variants = of(plain=[0.5, 0.6], other=[None])
  rows = comparison.table(variants, 'plain')
  with figures.style():
    drawn = comparison_figures.bars(rows, variants, 'top1', 'plain')
  assert len(drawn.axes) == 1


def test_the_figure_has_every_seed_and_both_intervals(prepared):
  told, found = prepared
  variants = of(plain=[0.5, 0.6], other=[0.7, 0.9], one=[0.8], none=[None])
  rows = comparison.table(variants, 'plain')
  with figures.style():
    drawn = comparison_figures.bars(rows, variants, 'top1', 'plain')
  left, right = drawn.axes
  seeds = [
      [*line.get_xdata()]
      for line in left.lines
      if line.get_marker() == '|' and line.get_markersize() == 4
  ]
  assert seeds == [[50, 60], [70, 90], [80], [], []]  # The legend's is last.
  names = [text.get_text() for text in left.get_yticklabels()]
  assert names == ['plain (2)', 'other (2)', 'one (1)', 'none (0)']
  assert len(left.containers) == 3 + 1 and len(right.containers) == 2
  segment = right.containers[0].lines[2][0].get_segments()[0]
  want = 100 * rows[1]['difference_low'], 100 * rows[1]['difference_high']
  np.testing.assert_allclose(segment[:, 0], want)
  explained = [text.get_text() for text in drawn.legends[0].get_texts()]
  assert explained == ['a seed', 'mean, 95% interval', 'mean of plain']


@pytest.mark.slow
@pytest.mark.faults('kills')
def test_a_kill_at_three_points_leaves_no_trace(tmp_path):
  text = f"""
config = '{commands.ROOT}/tests/tiny.py'
metric = 'top1'
baseline = 'plain'
seeds = 2
overrides.checkpoint_every_epochs = 0.1
[variants.plain]
model.aw_conv = false
[variants.AW]
"""
  (tmp_path / 'x.toml').write_text(text)

  def start(workdir):
    return commands.start(
        *commands.program('compare'),
        f'--study={tmp_path}/x.toml',
        f'--workdir={workdir}',
        env={'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'},
    )

  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  out, err = start(whole).communicate()
  assert (whole / 'results.json').exists(), (out, err)
  for log, line in (
      ('plain/seed0', 'compiling'),
      ('AW/seed0', 'step 9/'),
      ('plain/seed1', 'step 20/'),
  ):
    process, path = start(cut), cut / f'{log}.log'
    while not (path.exists() and line in path.read_text()):
      assert process.poll() is None, process.communicate()
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)  # The next one finds its run at work.
    process.communicate()
  process = start(cut)
  out, err = process.communicate()
  assert process.returncode == 0, err
  assert ', 2 came to their end before' in out
  for name in ('plain', 'AW'):
    for seed in (0, 1):
      assert_same_runs(*(d / f'{name}/seed{seed}' for d in (whole, cut)), 22)
  results = [json.loads((d / 'results.json').read_text()) for d in (whole, cut)]
  assert results[0]['rows'] == results[1]['rows']
