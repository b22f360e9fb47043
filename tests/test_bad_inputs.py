"""What a user can do wrong ends in one line; the list is `bad_inputs`."""

import traceback

import bad_inputs
import commands
import pytest

PROGRAMS = sorted({program for _, program, _ in bad_inputs.INPUTS})


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp('bad')
  bad_inputs.write_files(directory)
  return directory


def check(program, directory, run):
  """Runs all bad inputs of a program; lists those that end otherwise."""
  wrong, before = [], sorted(directory.rglob('*'))
  for _, name, arguments, words in bad_inputs.cases(directory):
    if name != program:
      continue
    try:
      code, _, err = run(name, arguments)
    except Exception:  # Which a user would see as a traceback.
      code, err = 0, traceback.format_exc()
    one_line = err.startswith('error: ') and err.count('\n') == 1
    if not code or not one_line or words not in err:
      wrong.append(f'{name} {" ".join(arguments)}\n  {words}\n  {err[-500:]}')
    left = set(directory.rglob('*')) - set(before)
    if left:
      wrong.append(f'{name} {" ".join(arguments)} leaves {left}')
      before = sorted(directory.rglob('*'))
  assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('program', PROGRAMS)
def test_a_bad_input_is_one_line_and_leaves_nothing(program, directory):
  check(program, directory, lambda name, args: commands.tool(name, *args))


@pytest.mark.slow
@pytest.mark.parametrize('program', PROGRAMS)
def test_so_it_is_in_a_process_of_its_own(program, directory):
  def run(name, arguments):
    return commands.run(*commands.program(name), *arguments, timeout=30)

  check(program, directory, run)
