"""The studies that are shipped: every variant is a config that can be run."""

import collections

import commands
import pytest

from awconv_jax.tools import study

STUDIES = sorted((commands.ROOT / 'configs/studies').glob('*.toml'))


@pytest.mark.parametrize('path', STUDIES, ids=lambda path: path.stem)
def test_every_variant_is_a_config(path, tmp_path, monkeypatch):
  monkeypatch.chdir(commands.ROOT)
  told = study.read(str(path))
  # Refuses what is no option, and a variant that is another's config.
  runs = study.runs(told, tmp_path)
  seeds = collections.Counter(run.variant for run in runs)
  assert set(seeds) == set(told.variants)
  assert set(seeds.values()) == {len(told.all_seeds())} and len(seeds) > 3
  baseline = next(run for run in runs if run.variant == told.baseline)
  sections = 'data', 'task', 'optimizer', 'num_epochs', 'batch_size'
  for run in runs:
    # One recipe: what differs is the network alone.
    assert all(run.config[key] == baseline.config[key] for key in sections)
