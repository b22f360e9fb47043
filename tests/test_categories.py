"""What a run keeps of its classes."""

import json
import types

import awconv_jax
from awconv_jax import models
from awconv_jax.train import loop as train_loop


def test_a_run_keeps_numbers_and_names(tmp_path):
  batches = types.SimpleNamespace(
      class_names=('heron', 'gull'), category_ids=(3, 20)
  )
  train_loop.write_classes(tmp_path, batches)
  found = json.loads((tmp_path / 'categories.json').read_text())
  assert found == [{'id': 3, 'name': 'heron'}, {'id': 20, 'name': 'gull'}]
  found = json.loads((tmp_path / 'classes.json').read_text())
  assert found == ['heron', 'gull']


def test_classes_without_numbers_have_names_only(tmp_path):
  batches = types.SimpleNamespace(class_names=('cat', 'dog'), category_ids=None)
  train_loop.write_classes(tmp_path, batches)
  assert [p.name for p in tmp_path.iterdir()] == ['classes.json']


def test_the_package_offers_detectors():
  assert awconv_jax.create_detector is models.create_detector
  assert 'create_detector' in awconv_jax.__all__
