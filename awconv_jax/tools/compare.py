r"""Trains variants of a config with several seeds, and compares what comes out.

  python -m awconv_jax.tools.compare --workdir=runs/study \
      --study=configs/studies/cluttered_digits.toml
  python -m awconv_jax.tools.compare --workdir=runs/study \
      --study=configs/studies/cluttered_digits.toml --report
  python -m awconv_jax.tools.compare --runs=runs/a0,runs/a1,runs/b0,runs/b1 \
      --workdir=runs/comparison

The file of a study has a config, changes to it by the name of a variant, and
the seeds. Each run is one of train.py, in <workdir>/<variant>/seed<k> with
its output beside it. All variants of a seed come first, then those of the next.
The same command resumes after any interruption; finished runs are not run
again. A run that fails is named, the others go on, and the exit code is 1.

Then it writes results.md, .csv, .tex and .json, and figures; --report does that
alone, and --runs with existing runs, grouped by config but for the seed.

--jobs trains several at a time. On one GPU each gets its share of 90 % of the
memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION is set. On CPU each takes all
cores: leave it at 1, or bind each to fewer by
XLA_FLAGS=--xla_cpu_multi_thread_eigen=false.

--time measures a step of each variant, in turns, in one process: the only times
that can be compared. The table has them from then on.
"""

from collections.abc import Sequence
import contextlib
import json
import pathlib

from absl import flags

from awconv_jax import command_line
from awconv_jax.errors import InputError, look_up
from awconv_jax.options import local_path

FLAGS = flags.FLAGS
TIMES = 'times.json'
OF_STUDIES = 'jobs', 'only', 'seeds', 'report', 'time'
# Flags that this one excludes.
NOT_WITH = {
    'report': ('jobs', 'only', 'seeds', 'time'),
    'time': ('jobs', 'seeds'),
}


@command_line.ended_by_sigterm()  # So that runs save, and are waited for.
def main() -> None:
  """Trains, times and reports as the flags say."""
  if not FLAGS.workdir or bool(FLAGS.study) == bool(FLAGS.runs):
    raise InputError(
        '--workdir and either --study or --runs are wanted, such as '
        '--study=configs/studies/cluttered_digits.toml --workdir=runs/study'
    )
  for name in OF_STUDIES:
    if FLAGS.runs and FLAGS[name].present:
      raise InputError(f'--{name} goes with --study, not with --runs')
  for flag, names in NOT_WITH.items():
    for name in names:
      if FLAGS[flag].value and FLAGS[name].present:
        raise InputError(f'--{name} does nothing with --{flag}; leave it out')
  for name in ('only', 'seeds', 'metric', 'baseline'):
    if FLAGS[name].present and not FLAGS[name].value:
      raise InputError(f'--{name}= names none; leave it out, or name one')
  FLAGS.workdir = local_path(FLAGS.workdir)
  if FLAGS.runs:
    return _of_runs(FLAGS.runs)
  _of_study()


def _of_study() -> None:
  # After the flags, so that --help and a mistake in them answer at once.
  import jax

  from awconv_jax.tools import step_times, study

  if not FLAGS.time:
    # Devices are for the runs; here nothing is computed.
    jax.config.update('jax_platforms', 'cpu')
  workdir, told = pathlib.Path(FLAGS.workdir), study.read(FLAGS.study)
  metric, baseline = FLAGS.metric or told.metric, told.baseline
  if FLAGS.baseline:
    baseline = FLAGS.baseline
    look_up('--baseline', baseline, told.variants)
  seeds = [_seed(text) for text in FLAGS.seeds or ()]
  every = study.runs(told, workdir)
  chosen = study.chosen(every, FLAGS.only or (), seeds)
  failed, finished = [], set()
  if not FLAGS.report:
    # Before it takes hours: the table at the end has also what is not chosen.
    finished = {run.path for run in every if study.is_finished(run)}
  # Reading needs no lock.
  alone = contextlib.nullcontext() if FLAGS.report else study.claimed(workdir)
  with alone:
    if FLAGS.time:
      _time(baseline, chosen, workdir / TIMES)
    elif not FLAGS.report:
      failed = _train(chosen, finished, workdir, metric)
    outcomes, times = _outcomes(every, workdir, metric), None
    if (workdir / TIMES).exists():
      configs = {run.variant: run.config for run in every}
      times = step_times.read(workdir / TIMES, configs, baseline)
    _report(workdir, outcomes, metric, baseline, FLAGS.study, times)
  if failed:
    raise InputError(*(f'failed: {line}' for line in failed))


def _time(baseline, chosen, path) -> None:
  """Measures a step of each variant, and keeps what it took."""
  from awconv_jax.tools import step_times
  from awconv_jax.train import programs, rundir

  first = chosen[0].seed
  configs = {run.variant: run.config for run in chosen if run.seed == first}
  with programs.kept(path):  # With those of the runs.
    times = step_times.measure(configs, baseline)
  rundir.write(path, json.dumps(times, indent=1) + '\n')
  print(f'written:  {path}')


def _train(chosen, finished, workdir, metric) -> list[str]:
  """Trains what is left; returns a line for each run that failed."""
  from awconv_jax.tools import comparison, study_runner

  left = [run for run in chosen if run.path not in finished]
  before = len(chosen) - len(left)
  print(
      f'{len(chosen)} runs in {workdir}, {before} came to their end before',
      flush=True,
  )

  def result(run):
    try:
      found = comparison.outcome(run.path, run.seed, metric, True)
    except InputError as error:  # Of the metric: the others go on.
      return str(error)
    return found.why or f'{metric} {found.value:.4f}'

  env = study_runner.environment(workdir, FLAGS.jobs)
  return study_runner.train(left, env, jobs=FLAGS.jobs, result=result)


def _outcomes(every, workdir, metric) -> dict[str, list]:
  """Returns what came out of all runs of a study, by variant."""
  from awconv_jax.tools import comparison, study, study_runner

  outcomes = {run.variant: [] for run in every}
  for run in every:
    done = study.is_finished(run)
    one = comparison.outcome(run.path, run.seed, metric, done)
    if one.why and (error := study_runner.last_error(run)):
      one = one._replace(why=f'{one.why}: {error}')
    # So that the results say the same wherever the directory lies.
    place = str(run.path.relative_to(workdir))
    outcomes[run.variant].append(one._replace(path=place))
  return outcomes


def _of_runs(paths: Sequence[str]) -> None:
  from awconv_jax.tools import comparison, plot_curves, study
  from awconv_jax.train import logging

  groups = plot_curves.by_config(paths)
  workdir = study.made(FLAGS.workdir)
  baseline = FLAGS.baseline or next(iter(groups))
  look_up('--baseline', baseline, groups)
  metric = FLAGS.metric
  if metric is None:
    first = next(iter(groups.values()))[0]
    names = {n for row in logging.read(first / 'metrics.jsonl') for n in row}
    known = [n for n in plot_curves.PANELS if f'eval/{n}' in names]
    metric = next((n for n in known if n != 'loss'), 'loss')
  groups = {n: [p.absolute() for p in found] for n, found in groups.items()}
  outcomes = comparison.of_directories(groups, metric)
  _report(workdir, outcomes, metric, baseline, 'comparison')


def _report(workdir, outcomes, metric, baseline, name, times=None) -> None:
  from awconv_jax.tools import comparison_files

  if all(one.value is None for found in outcomes.values() for one in found):
    print('no run has come to its end: there is nothing to compare yet')
    return
  title = pathlib.Path(name).stem
  options = dict(title=title, times=times, by_mean=FLAGS.sort)
  written = [
      *comparison_files.write(workdir, outcomes, metric, baseline, **options)
  ]
  print((workdir / 'results.md').read_text())
  print(f'written:  {", ".join(written)}')


def _seed(text: str) -> int:
  if not text.isdecimal():
    raise InputError(f'--seeds: {text!r} is no seed, such as 0,1,2')
  return int(text)


if __name__ == '__main__':
  flags.DEFINE_string('study', None, 'A file in TOML: variants and seeds.')
  text = 'Existing runs, instead of a study.'
  flags.DEFINE_list('runs', None, text)
  flags.DEFINE_string('workdir', None, 'Gets the runs and the results.')
  flags.DEFINE_integer('jobs', 1, 'How many runs at a time.', 1, 1000)
  flags.DEFINE_list('only', None, 'Names of variants to train or time.')
  flags.DEFINE_list('seeds', None, 'Seeds to train, such as 0,1.')
  flags.DEFINE_string('metric', None, "Of the evaluation; the study's.")
  text = "A variant, or a group of --runs; the study's."
  flags.DEFINE_string('baseline', None, text)
  flags.DEFINE_bool('report', False, 'Train nothing: write the results.')
  flags.DEFINE_bool('time', False, 'Train nothing: measure steps.')
  flags.DEFINE_bool('sort', False, 'The best first, not as in the study.')
  command_line.run(main)
