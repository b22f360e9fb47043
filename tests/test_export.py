"""A network as one program, which is what the network is."""

import dataclasses
import json
import re
import sys

import commands
import jax
import numpy as np
from PIL import Image
import pytest
import tiny
import tiny_scenes
import trained

from awconv_jax import inference
from awconv_jax.errors import InputError
from awconv_jax.tools import export, onnx_program

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
  run = tmp_path_factory.mktemp('export') / 'run'
  trained.write_run(run, tiny.get_config(), channels=1)
  (run / 'classes.json').write_text(json.dumps(list('abcdefghij')))
  return inference.load(run)


def test_the_python_code_of_the_docs_runs_what_was_exported(
    classifier, tmp_path, monkeypatch
):
  pytest.importorskip('flatbuffers')
  monkeypatch.chdir(tmp_path)
  lines = export.export(classifier, 'exported/digits')
  assert [line.partition(':')[0] for line in lines] == [
      'exported/digits/model.stablehlo',
      'exported/digits/model.json',
  ]
  namespace = {}
  exec(commands.python_of_docs('export.md'), namespace)
  told, names = namespace['told'], namespace['names']
  images = [*namespace['images']]
  assert names == [one.name for one in classifier(images)]
  probabilities = [one.probabilities for one in classifier(images)]
  found = namespace['found']['probabilities']
  np.testing.assert_allclose(found, probabilities, atol=1e-6)
  # And of a photo, cut and resized by hand.
  Image.fromarray(
      np.random.default_rng(0).integers(0, 256, (40, 33), np.uint8)
  ).save('photo.png')
  exec(commands.python_of_docs('export.md', 1), namespace)
  by_hand = namespace['program'].call(image=namespace['images'])
  np.testing.assert_allclose(
      by_hand['probabilities'][0],
      classifier('photo.png').probabilities,
      atol=1e-6,
  )
  assert told['classes'] == list('abcdefghij')
  assert told['crop']['size'] == told['image_size'] == 16
  assert told['inputs']['model.stablehlo'] == {
      'image': 'uint8 [batch, 16, 16, 1]'
  }
  assert set(namespace['program'].platforms) == {'cpu', 'cuda', 'tpu'}
  with pytest.raises(InputError, match="'gs://a/b' is no path of this machi"):
    export.export(classifier, 'gs://a/b')
  with pytest.raises(InputError, match="'exported/digits' exists; name anot"):
    export.export(classifier, 'exported/digits')


def test_what_is_not_the_network_is_refused_and_removed(
    classifier, tmp_path, monkeypatch
):
  pytest.importorskip('flatbuffers')
  write, tolerance = export.FORMATS['stablehlo']

  def write_another(model, *rest):
    other = jax.tree.map(lambda a: a * np.float32(1.01), model.variables)
    return write(dataclasses.replace(model, variables=other), *rest)

  changed = {'stablehlo': (write_another, tolerance)}
  monkeypatch.setattr(export, 'FORMATS', changed)
  with pytest.raises(InputError, match="'probabilities' at 1 images"):
    export.export(classifier, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('format', export.FORMATS)
def test_a_missing_package_is_told_before_anything_is_computed(
    classifier, tmp_path, monkeypatch, format
):
  for name in ('flatbuffers', 'jax2onnx'):
    monkeypatch.setitem(sys.modules, name, None)
  remedy = r'awconv_jax\[export\]|see docs/export.md'
  with pytest.raises(InputError, match=remedy):
    export.export(classifier, tmp_path / 'out', format=format)
  assert not (tmp_path / 'out').exists()


def test_any_difference_counts():
  want = {'boxes': np.float32([[0, 800]]), 'labels': np.int32([1, 2])}
  same = {name: array.copy() for name, array in want.items()}
  assert export.difference(same, want) == {'boxes': 0, 'labels': 0}
  found = {'boxes': want['boxes'] + 8, 'labels': np.int32([1, 3])}
  off = export.difference(found, want)
  assert off == {'boxes': pytest.approx(0.01), 'labels': 1}
  found['boxes'] = want['boxes'] * np.nan
  assert export.difference(found, want)['boxes'] == np.inf


def test_what_onnx_is_made_of_is_one_platforms_and_the_network(classifier):
  shapes = export.inputs(classifier, False, 2)
  images = export.examples(shapes)['image']
  closed = jax.make_jaxpr(export.function_of(classifier))(**shapes)
  assert 'platform_index' in str(closed)
  run = jax.jit(lambda images: onnx_program.evaluate(closed, [images]))
  assert 'platform_index' not in str(jax.make_jaxpr(run)(images))
  expected = [one.probabilities for one in classifier([*images])]
  np.testing.assert_allclose(run(images)[0], expected, atol=1e-6)


@pytest.mark.slow
def test_a_detector_has_a_program_for_each_canvas(tmp_path):
  pytest.importorskip('flatbuffers')
  trained.write_run(tmp_path / 'run', tiny_scenes.get_config())
  model = inference.load(tmp_path / 'run')
  lines = export.export(model, tmp_path / 'out')
  names = [line.partition(':')[0].rpartition('/')[2] for line in lines]
  assert names == ['model.stablehlo', 'portrait.stablehlo', 'model.json']
  for line in lines[:2]:
    assert int(re.search(r'(\d+) objects on 5', line)[1]) > 0
  with pytest.raises(InputError, match='onnx is of classifiers alone'):
    export.export(model, tmp_path / 'onnx', format='onnx')
  told = json.loads((tmp_path / 'out/model.json').read_text())
  assert set(told['outputs']['model.stablehlo']) == {
      *('boxes', 'scores', 'labels', 'valid')
  }
