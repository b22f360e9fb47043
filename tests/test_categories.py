"""What a run keeps of its classes."""

import json

import awconv_jax
from awconv_jax import models
from awconv_jax.train import rundir


def test_a_run_keeps_numbers_and_names(tmp_path):
  rundir.write_classes(tmp_path, ('heron', 'gull'), (3, 20))
  found = json.loads((tmp_path / 'categories.json').read_text())
  assert found == [{'id': 3, 'name': 'heron'}, {'id': 20, 'name': 'gull'}]
  found = json.loads((tmp_path / 'classes.json').read_text())
  assert found == ['heron', 'gull']


def test_classes_without_numbers_have_names_only(tmp_path):
  rundir.write_classes(tmp_path, ('cat', 'dog'), None)
  assert [p.name for p in tmp_path.iterdir()] == ['classes.json']


def test_the_package_offers_detectors():
  assert awconv_jax.create_detector is models.create_detector
  assert 'create_detector' in awconv_jax.__all__
