"""What came out of runs: by variant, over seeds, and against a baseline.

Intervals are of Student's t, for values of a normal distribution: of a mean
over n seeds with n - 1 degrees of freedom, and of a difference over the seeds
that both variants have, pair by pair: a seed gives both the order of the data,
and first weights where they are alike.
"""

from collections.abc import Mapping, Sequence
import math
import os
import pathlib
import statistics
from typing import Any, NamedTuple

from scipy import special

from awconv_jax import places
from awconv_jax.errors import InputError, look_up, unknown_name
from awconv_jax.train import logging, rundir

LEVEL = 0.95


class Outcome(NamedTuple):
  """What came out of one run.

  Attributes:
    path: its directory.
    seed: of the run.
    value: the metric of its last evaluation; None if it does not count.
    step: of the last row.
    why: it does not count; '' if it does.
    facts: what `rundir.finish` wrote, {} if nothing.
  """

  path: str
  seed: int
  value: float | None
  step: int
  why: str
  facts: Mapping[str, Any]


class Interval(NamedTuple):
  """A mean over n values, their standard deviation, and its interval.

  The deviation is that of n - 1; it and the ends are None of less than two.
  The ends are of equal values, too, whose deviation tells nothing.
  """

  n: int
  mean: float | None
  std: float | None = None
  low: float | None = None
  high: float | None = None


def interval(values: Sequence[float]) -> Interval:
  """Returns the mean and its interval of Student's t."""
  n = len(values)
  mean = math.fsum(values) / n if n else None
  if n < 2:
    return Interval(n, mean)
  std = statistics.stdev(values)
  if not std:
    return Interval(n, mean, std)
  half = float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) * std / math.sqrt(n)
  return Interval(n, mean, std, mean - half, mean + half)


def outcome(
    path: str | os.PathLike,
    seed: int,
    metric: str,
    finished: bool | None,
    num_epochs: float | None = None,
) -> Outcome:
  """Reads what came out of a run.

  Args:
    path: its directory.
    seed: of the run.
    metric: of its evaluation.
    finished: whether it came to its end; None if that is not known, and its
      rows have to tell.
    num_epochs: of the run, for that.

  Raises:
    InputError: its evaluations have no such metric, or cannot be read.
  """
  there, facts = places.at(path), rundir.finished(path) or {}
  rows = []
  if (there / 'metrics.jsonl').exists():
    rows = logging.read(there / 'metrics.jsonl')
  step = rows[-1]['step'] if rows else 0
  if finished is None:
    finished = _reached(rows, num_epochs)
  measured = facts.get('metrics')  # As in the rows, which may have been cut.
  if not facts:
    evaluated = (_evaluation(row) for row in rows[::-1])
    measured = next(filter(None, evaluated), None)
  value, why = None, ''
  if not rows and not measured:
    why = 'without a row of metrics' if there.exists() else 'not begun'
  elif finished is False:
    why = f'not at its end; it is at step {step:,}'
  elif not measured:
    why = f'without an evaluation; it is at step {step:,}'
  elif metric not in measured:
    raise unknown_name(f'metric of {there}:', metric, measured)
  else:
    value = measured[metric]
    # COCO's of a split without any object is -1.
    if not math.isfinite(value) or metric[:2] in ('AP', 'AR') and value < 0:
      value, why = None, f'ended with {metric} {value}'
  return Outcome(os.fspath(path), seed, value, step, why, facts)


def _evaluation(row: Mapping[str, float]) -> dict[str, float]:
  """Returns the metrics of a row, {} of one of training."""
  return {k[5:]: value for k, value in row.items() if k[:5] == 'eval/'}


def _reached(
    rows: Sequence[Mapping[str, float]], num_epochs: float | None
) -> bool | None:
  """Returns whether the last row is of a run's end; None if it cannot tell."""
  last = next((row for row in rows[::-1] if row.get('train/epoch')), None)
  if last is None or num_epochs is None:
    return None
  per_epoch = last['step'] / last['train/epoch']
  return rows[-1]['step'] + 1 > num_epochs * per_epoch


def table(
    variants: Mapping[str, Sequence[Outcome]],
    baseline: str,
    times: Mapping[str, Mapping[str, float]] | None = None,
) -> list[dict[str, Any]]:
  """Returns a row for each variant.

  It holds 'variant', 'n', 'mean', 'std', 'low' and 'high' of the mean,
  'difference' to the baseline with 'difference_low', 'difference_high' and the
  number of 'pairs', 'parameters', 'multiply_adds' of an image, 'step_ms' and
  'step_ratio' to the baseline with its quartiles 'step_ratio_low' and
  'step_ratio_high'; None where there is nothing to say.

  Args:
    variants: outcomes by name.
    baseline: one of the names.
    times: 'variants' of `step_times.measure`, if they were measured.
  """
  base = _values(look_up('variant', baseline, variants))
  rows = []
  for name, outcomes in variants.items():
    values = _values(outcomes)
    found = interval(list(values.values()))
    common = [v - base[seed] for seed, v in values.items() if seed in base]
    apart = interval(common if name != baseline else [])
    facts = next((o.facts for o in outcomes if o.facts), {})
    time = (times or {}).get(name, {})
    rows.append(
        dict(
            variant=name,
            **found._asdict(),
            difference=apart.mean,
            difference_low=apart.low,
            difference_high=apart.high,
            pairs=apart.n if name != baseline else None,
            parameters=facts.get('parameters'),
            multiply_adds=facts.get('multiply_adds'),
            step_ms=time.get('milliseconds'),
            step_ratio=time.get('ratio'),
            step_ratio_low=time.get('low'),
            step_ratio_high=time.get('high'),
        )
    )
  return rows


def _values(outcomes: Sequence[Outcome]) -> dict[int, float]:
  return {o.seed: o.value for o in outcomes if o.value is not None}


def of_directories(
    groups: Mapping[str, Sequence[pathlib.Path]], metric: str
) -> dict[str, list[Outcome]]:
  """Returns the outcomes of runs that no study knows of, by variant.

  Raises:
    InputError: one is none, or has no such metric.
  """
  found = {}
  for name, paths in groups.items():
    found[name] = []
    for path in paths:
      config = rundir.read_config(path)
      told = rundir.finished(path)
      done = told and told['config']['num_epochs'] == config.num_epochs
      one = outcome(path, config.seed, metric, done, config.num_epochs)
      if not one.step and one.value is None:
        raise InputError(f'{path} has no metrics.jsonl; is it a run?')
      found[name].append(one)
  return found
