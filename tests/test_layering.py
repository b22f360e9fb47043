"""Who may import whom, read from the source; and what importing may cost."""

import ast
import graphlib

import commands
import pytest

PACKAGE = commands.ROOT / 'awconv_jax'
# What each room may import of the package, besides its own files and errors.
ALLOWED = {
    **dict.fromkeys(('errors', 'options', 'config', 'ops', 'weights'), set()),
    **dict.fromkeys(('data', 'evaluators', 'memory', 'text_table'), set()),
    **dict.fromkeys(('places', 'figures', 'results'), set()),
    'layers': {'ops'},
    'models': {'layers', 'ops'},
    'surgery': {'layers', 'ops'},
    'nnx': {'layers'},
    'train': (
        {'config', 'data', 'macs', 'models', 'ops', 'surgery', 'tasks'}
        | {'text_table', 'weights'}
    ),
    'tasks': {'models', 'ops', 'evaluators'},
    'macs': {'ops'},
    'compilers': set(),
    'manual': {'config'},
    'command_line': {'config', 'train'},
    '__init__': {'layers', 'models', 'ops', 'surgery', 'pretrained'},
    'model_card': {'text_table'},
    'pretrained': {'inference', 'model_card', 'train', 'weights'},
}


# By the dotted name; a package is its __init__.
FILES = {
    '.'.join(p.relative_to(commands.ROOT).with_suffix('').parts): p
    for p in PACKAGE.rglob('*.py')
}
FILES = {name.removesuffix('.__init__'): path for name, path in FILES.items()}


def imports_of(path):
  """Yields the dotted name of everything a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      for alias in node.names:
        yield f'{node.module}.{alias.name}'


@pytest.mark.parametrize('file', FILES)
def test_a_file_imports_what_its_room_may(file):
  room = f'{file}.__init__'.split('.')[1]
  for name in imports_of(FILES[file]):
    parts = name.split('.')
    assert parts[0] not in ('train', 'configs', 'tests'), name
    if parts[0] == 'awconv_jax' and room not in (
        'inference',
        'explain',
        'tools',
    ):
      everywhere = {room, 'errors', 'memory', 'options', 'places'}
      assert parts[1] in ALLOWED[room] | everywhere, name


def test_no_files_import_each_other_in_a_circle():
  graph = graphlib.TopologicalSorter()
  for file, path in FILES.items():
    for name in imports_of(path):  # Of a file, or of a name in one.
      graph.add(file, name if name in FILES else name.rpartition('.')[0])
  graph.prepare()


def test_flags_are_defined_for_programs_only():
  for path in PACKAGE.rglob('*.py'):
    if 'tools' not in path.parts and path.stem != 'command_line':
      assert 'flags.DEFINE' not in path.read_text(), path
