"""Models as directories and files: moved, changed, and by name."""

import json
import re
import shutil

import commands
import hub
import numpy as np
import pytest
import tiny
import trained

import awconv_jax
from awconv_jax import model_card, pretrained, weights
from awconv_jax.errors import InputError
from awconv_jax.train import rundir
from awconv_jax.weights.located import FILES

pytestmark = pytest.mark.usefixtures('quick_compiles_of_module')

IMAGES = [np.random.default_rng(0).integers(0, 256, (9, 12, 1), np.uint8)]
ELSEWHERE = """
import sys, numpy as np, awconv_jax
images = [np.random.default_rng(0).integers(0, 256, (9, 12, 1), np.uint8)]
for source in sys.argv[1:]:
  model = awconv_jax.load(source)
  found = model.predict(images)
  print(found.names, model.weights, found.probabilities.tobytes().hex())
"""


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  directory = tmp_path_factory.mktemp('pretrained') / 'run'
  trained.write_run(directory, tiny.get_config(), channels=1)
  (directory / 'classes.json').write_text(json.dumps(list('abcdefghij')))
  rows = {'step': 7, 'eval/top1': 0.5, 'eval/num_examples': 360.0}
  (directory / 'metrics.jsonl').write_text(json.dumps(rows) + '\n')
  return directory


@pytest.fixture(scope='module')
def model(run, tmp_path_factory):
  """The directory of a model."""
  directory = tmp_path_factory.mktemp('model') / 'made'
  awconv_jax.save_pretrained(run, directory)
  return directory


@pytest.mark.slow
def test_a_moved_model_computes_the_same_bits_in_another_process(
    run, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  shutil.copytree(run, 'runs/digits')
  found = awconv_jax.load('runs/digits').predict(IMAGES)
  exec(commands.python_of_docs('weights.md'), {})
  shutil.move('models/digits', 'made')
  awconv_jax.save_pretrained('made', 'made.safetensors')
  shutil.rmtree('runs')
  (tmp_path / 'far').mkdir()
  names = 'moved', 'moved.safetensors'
  moved = [
      shutil.move(name.replace('moved', 'made'), tmp_path / 'far' / name)
      for name in names
  ]
  code, out, err = commands.run('-c', ELSEWHERE, *moved)
  assert (code, err) == (0, '')
  bits = found.probabilities.tobytes().hex()
  assert out == f'{found.names} weights of step 0 {bits}\n' * 2
  assert found.names[0] in 'abcdefghij'


def test_the_card_says_what_the_run_knows(model):
  card = (model / 'README.md').read_text()
  for words in (
      'pipeline_tag: image-classification',
      '# AW-resnet18 on digits',
      'split `test` of `digits` at step 7',
      '| top1         | 0.5000',
      '| num_examples | 360 ',
      'a, b, c, d, e, f, g, h, i, j',
      '0.5 epochs in batches of 32, sgd',
      'mean [78.0], std [96.0]',
  ):
    assert words in card


def changed_weights(path):
  content = bytearray((path / 'model.safetensors').read_bytes())
  content[-1] ^= 1
  (path / 'model.safetensors').write_bytes(content)


def changed_config(path):
  text = (path / 'config.json').read_text()
  (path / 'config.json').write_text(text.replace('78.0', '79.0'))


def changed_both(path):
  changed_config(path)
  content = (path / 'model.safetensors').read_bytes()
  content = content.replace(b'78.0', b'79.0')
  (path / 'model.safetensors').write_bytes(content)


def later_format(path):
  (path / 'config.json').unlink()
  content = (path / 'model.safetensors').read_bytes()
  content = content.replace(rb'\"format\": 1,', rb'\"format\": 2,')
  (path / 'model.safetensors').write_bytes(content)


@pytest.mark.parametrize(
    'change, words',
    [
        (changed_weights, 'model.safetensors cannot be read: it was changed'),
        (changed_config, 'config.json was changed after it was saved'),
        (changed_both, 'model.safetensors cannot be read: it was changed'),
        (later_format, r"format 2, by awconv_jax '\d.*install that version"),
    ],
)
def test_a_changed_model_is_refused(change, words, model, tmp_path):
  shutil.copytree(model, tmp_path / 'copy')
  change(tmp_path / 'copy')
  with pytest.raises(InputError, match=words) as caught:
    awconv_jax.load(tmp_path / 'copy')
  assert '\n' not in str(caught.value)


def test_metrics_are_of_the_config_that_they_were_measured_with(run, model):
  for source in (run, model):
    config = rundir.read_config(source).unlock()
    config.data.num_threads = 3  # Which cannot matter.
    told = pretrained.describe(awconv_jax.load(source, config))
    assert told['metrics']['eval/top1'] == 0.5
    config.task.mean = [79.0]
    told = pretrained.describe(awconv_jax.load(source, config))
    assert told['metrics'] == {}
    told = pretrained.describe(awconv_jax.load(source, config), {'top1': 0.25})
    assert told['metrics'] == {'top1': 0.25}


def test_a_part_of_a_model_is_called_that(model, tmp_path):
  part = tmp_path / 'part'
  shutil.copytree(model, part)
  (part / 'model.safetensors').rename(tmp_path / 'A.SAFETENSORS')
  assert awconv_jax.load(tmp_path / 'A.SAFETENSORS').weights
  (tmp_path / 'a.pth').touch()
  (tmp_path / 'a.txt').touch()
  for source, words in (
      (part, f'{part} has no model.safetensors; fetch it again'),
      (part / 'README.md', f'is a file of a model or a run; give {part}'),
      (tmp_path / 'a.pth', 'has weights without a config; give one'),
      (tmp_path / 'a.txt', 'is neither a model nor a run'),
  ):
    with pytest.raises(InputError, match=words):
      awconv_jax.load(source)


def test_a_layer_of_ones_own_is_named_where_it_is_missing(run, tmp_path):
  config = json.loads((run / 'config.json').read_text())
  config['model']['attention'] = 'no_layers:Slope'
  (tmp_path / 'config.json').write_text(json.dumps(config))
  message = '^.*config.json: .*cannot be imported.*run it where no_layers.py'
  with pytest.raises(InputError, match=message):
    rundir.read_config(tmp_path)
  assert model_card.lacking(config) == (
      'the module no_layers, of which nothing is in it'
  )


def test_nothing_else_is_written_over(run, model, tmp_path, monkeypatch):
  with pytest.raises(InputError, match=r"'.pth'; known: .safetensors, none"):
    awconv_jax.save_pretrained(model, tmp_path / 'x.pth')
  with pytest.raises(InputError, match='holds something else than a model'):
    awconv_jax.save_pretrained(model, run)
  with pytest.raises(InputError, match=f'beside it; give {model}, or'):
    awconv_jax.save_pretrained(model, model / 'model.safetensors')

  def full(*arguments, **options):
    raise InputError('no space left')

  monkeypatch.setattr(weights, 'save', full)
  config = (model / 'config.json').read_bytes()
  for place in (model, tmp_path / 'new'):
    with pytest.raises(InputError, match='no space left'):
      awconv_jax.save_pretrained(run, place)
  assert (model / 'config.json').read_bytes() == config
  assert not (tmp_path / 'new').exists()


def test_a_run_is_not_written_into_a_model(model):
  with (
      pytest.raises(InputError, match='holds a model; give another'),
      rundir.claim(model, tiny.get_config()),
  ):
    pass


def test_a_model_goes_to_the_hub_and_comes_from_there(
    model, tmp_path, monkeypatch
):
  pytest.importorskip('huggingface_hub')
  cache = 'huggingface_hub.constants.HF_HUB_CACHE'
  monkeypatch.setattr(cache, str(tmp_path / 'cache'))
  monkeypatch.setenv('HF_TOKEN', 'hf_of_nobody')
  # What else lies there is not pushed, nor are other weights fetched.
  shutil.copytree(model, tmp_path / 'copy')
  (tmp_path / 'copy/notes.txt').touch()
  push = 'convert', f'--input={model}', f'--output={tmp_path}/copy'
  with hub.serve() as (address, commits, log):
    monkeypatch.setenv('HF_ENDPOINT', address)
    code, out, err = commands.tool(*push, '--push=alice/digits')
    assert code == 0, err
    assert out.endswith('/alice/digits, to be loaded as hf-hub:alice/digits\n')
    (files,) = commits['alice/digits'].values()
    assert files == {
        name: (tmp_path / 'copy' / name).read_bytes() for name in FILES
    }
    for revision in commits['alice/digits'].values():
      revision['other.safetensors'] = b'0'
    # On the data that its config names.
    flags = '--run=hf-hub:alice/digits@main', f'--output={tmp_path}/found.json'
    code, _, err = commands.tool('evaluate', *flags)
    assert code == 0, err
    # By one revision, which is asked for once.
    assert sum('/revision/' in line for line in log) == 1
    assert not any('other.safetensors' in line for line in log)
    # What is not there, or not allowed, is one line.
    for flags, words in (
        (('evaluate', '--run=hf-hub:alice/digitz'), "'hf-hub:alice/digitz' on"),
        ((*push, '--push=others/digits'), "'others/digits' on the hub: .*403"),
    ):
      code, _, err = commands.tool(*flags)
      assert code == 1 and err.splitlines()[-1].startswith('error: ')
      assert re.search(words, err)
  found = json.loads((tmp_path / 'found.json').read_text())
  assert found['num_examples'] == 360 and found['data'] == 'digits'
  # Without a way there, what was fetched is still here.
  loaded = awconv_jax.load('hf-hub:alice/digits')
  wanted = awconv_jax.load(model).predict(IMAGES).probabilities
  assert (loaded.predict(IMAGES).probabilities == wanted).all()


@pytest.mark.parametrize('name', weights.shipped())
def test_a_shipped_model_is_found_by_its_name(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / name).mkdir()  # Which holds no model.
  config = rundir.read_config(name)
  assert config.data.name == name
  weights.read(name, network=config.model)  # By its digest.
  assert weights.describe(weights.locate(name))['classes'] == [*'0123456789']
