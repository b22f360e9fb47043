"""What a user can do wrong, one by one; `test_bad_inputs` has them together."""

import pathlib

import bad_inputs
import commands
import pytest
import runs

pytestmark = pytest.mark.faults('hostile inputs')

NAMES = [
    f'{number} {program}'
    for number, (_, program, *_) in enumerate(
        bad_inputs.cases(pathlib.Path('/nowhere'))
    )
]


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp('bad')
  bad_inputs.write_files(directory)
  return directory


@pytest.mark.parametrize('name', runs.cases(NAMES))
def test_a_bad_input(directory, name):
  number = int(name.partition(' ')[0])
  _, program, arguments, words = [*bad_inputs.cases(directory)][number]
  before = set(directory.rglob('*'))
  code, _, err = commands.tool(program, *arguments)
  runs.assert_one_line(code, err, words)
  assert set(directory.rglob('*')) == before
