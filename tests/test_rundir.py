"""The directory of a run: whose it is, and what labels stand for in it."""

import json
import pathlib

import pytest
import tiny

from awconv_jax import errors
from awconv_jax.train import rundir


def claim(workdir, **changes):
  """Has the directory for a moment, for a run of digits."""
  config = tiny.get_config()
  config.update_from_flattened_dict(
      {k.replace('__', '.'): v for k, v in changes.items()}
  )
  with rundir.claim(workdir, config):
    pass


@pytest.fixture
def workdir(tmp_path):
  claim(tmp_path, seed=3)  # Without a checkpoint it belongs to no config.
  (tmp_path / 'checkpoints').mkdir()
  claim(tmp_path)
  (tmp_path / 'checkpoints/7').mkdir()
  return tmp_path


def test_a_workdir_names_the_keys_that_differ(workdir):
  claim(workdir, data__num_threads=2)  # Of no bearing on the result.
  with pytest.raises(errors.InputError, match='seed is 0 there and 2 here'):
    claim(workdir, seed=2)
  with pytest.raises(errors.InputError, match='width is 4 there .* and 1 more'):
    claim(workdir, seed=2, batch_size=8, model__width=8, model__stem='imagenet')
  claim(workdir)
  with pytest.raises(errors.InputError, match='/dev/null/x cannot be written'):
    claim(pathlib.Path('/dev/null/x'))


def test_the_config_of_an_older_run_is_completed(workdir):
  """Options that came later have their defaults in it."""
  path = workdir / 'config.json'
  held = json.loads(path.read_text())
  del held['accumulation_steps'], held['model']['block']
  path.write_text(json.dumps(held))
  claim(workdir)
  assert rundir.read_config(workdir).accumulation_steps == 1
  for text in ('{', '[]', '{"seed": 0}'):
    path.write_text(text)
    with pytest.raises(errors.InputError, match='json does not hold the conf'):
      claim(workdir)


@pytest.mark.parametrize('numbers', [(3, 20), None])
def test_a_run_keeps_names_of_classes_and_their_numbers_if_any(
    tmp_path, numbers
):
  rundir.write_classes(tmp_path, ('heron', 'gull'), numbers)
  found = {p.name: json.loads(p.read_text()) for p in tmp_path.iterdir()}
  want = {'classes.json': ['heron', 'gull']}
  if numbers:
    rows = [{'id': 3, 'name': 'heron'}, {'id': 20, 'name': 'gull'}]
    want['categories.json'] = rows
  assert found == want
