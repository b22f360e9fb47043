"""What the README says is so: its code runs, its commands parse, its counts."""

import re
import shlex

import commands
import jax
import jax.numpy as jnp
import pytest

from awconv_jax import command_line, complexity, models, tasks

README = (commands.ROOT / 'README.md').read_text()
DOCS = sorted((commands.ROOT / 'docs').glob('*.md'))


def blocks(language, text=README):
  found = re.findall(r'^```(\w*)\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)
  return [text for kind, text in found if kind == language]


def test_the_python_code_runs():
  namespace = {}
  for block in blocks('python'):
    exec(block, namespace)  # One after the other, as a reader would.
  assert namespace['out'].shape == (2, 16, 16, 64)


def test_the_commands_parse():
  texts = [README, *(path.read_text() for path in DOCS)]
  found = [block for text in texts for block in blocks('bash', text)]
  lines = [line for block in found for line in block.splitlines()]
  trainings = [line for line in lines if line.startswith('python train.py')]
  assert len(trainings) >= 8
  for line in trainings:
    arguments = shlex.split(line, comments=True)[2:]
    command_line.check_overrides(arguments)
    value = next(a for a in arguments if a.startswith('--config='))
    config = command_line.load_config(value.partition('=')[2])
    tasks.create(config)
  for line in lines:
    module = re.match(r'python -m (\S+)', line)
    if module:
      __import__(module[1])


def test_the_make_targets_exist():
  makefile = (commands.ROOT / 'Makefile').read_text()
  for target in set(re.findall(r'`?make (\w+)', README)) - {'nothing'}:
    assert re.search(rf'^{target}:', makefile, re.MULTILINE), target


def test_the_tree_names_what_is_there():
  tree = next(b for b in blocks('') if b.startswith('train.py'))
  for name in re.findall(r'^ {0,2}(\S+\.py|\S+/)', tree, re.MULTILINE):
    root = commands.ROOT
    assert (root / name).exists() or (root / 'awconv_jax' / name).exists(), name
  for path in (commands.ROOT / 'awconv_jax').iterdir():
    if path.name[0] not in '._':
      assert path.name in tree, path.name


@pytest.mark.parametrize(
    'depth',
    [
        18,
        34,
        50,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (101, 152)),
    ],
)
def test_the_table_of_parameters_and_multiply_adds(depth):
  row = re.search(rf'\| ResNet-{depth} \|(.*)\|', README)[1].split('|')
  plain, with_aw, added, macs, macs_aw = [cell.strip() for cell in row]
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  counts = []
  for aw_conv in (False, True):
    model = models.create(f'resnet{depth}', aw_conv=aw_conv)

    def init(key, model=model):
      return model.init(key, jnp.ones((1, 64, 64, 3)), train=False)

    def apply(variables, images, model=model):
      return model.apply(variables, images, train=False)

    variables = jax.eval_shape(init, jax.random.key(0))
    spent = complexity.count_macs(apply, variables, image)
    counts.append(complexity.rows(variables['params'], spent)[1])
  assert plain == f'{counts[0].parameters:,}'
  assert with_aw == f'{counts[1].parameters:,}'
  assert added == f'{counts[1].parameters - counts[0].parameters:,}'
  assert macs == f'{counts[0].multiply_adds / 1e9:.3f}'
  assert macs_aw == f'{counts[1].multiply_adds / 1e9:.3f}'


def test_no_placeholder_is_left():
  for path in (
      commands.ROOT / 'README.md',
      *(commands.ROOT / 'docs').iterdir(),
  ):
    for line in path.read_text().splitlines():
      assert not re.fullmatch(r'[A-Z_]{4,}', line.strip()), f'{path}: {line}'
