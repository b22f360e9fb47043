"""The engine of configs by its behaviour: a toy schema, each kind of fault."""

from collections.abc import Mapping, Sequence
import functools
import math
import pathlib
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import pytest

from awconv_jax import config as engine
from awconv_jax import options
from awconv_jax.errors import InputError
from awconv_jax.options import (
    Bound,
    Dtype,
    Named,
    OneOf,
    Options,
    PositiveInt,
    Steps,
)


@pytest.mark.parametrize(
    'path, want',
    [
        ('~/runs/a', '/root/elsewhere/runs/a'),
        ('./~x', './~x'),
        ('a:b/c', 'a:b/c'),
        ('~nobody_here/x', 'no such user'),
        ('gs://bucket/run', 'no path of this machine'),
        (pathlib.PurePath('s3://bucket/run'), 'no path of this machine'),
        ('a\0b', 'zero byte'),
        ('a\ud800b', 'half a character'),
        ('', 'is empty'),
    ],
)
def test_a_path_is_one_of_this_machine(monkeypatch, path, want):
  """Or a folder '~' would be made where the user happens to be."""
  monkeypatch.setenv('HOME', '/root/elsewhere')
  try:
    assert options.local_path(path) == want
  except InputError as error:
    assert want in str(error)


def test_a_path_in_a_bucket_is_taken_as_it_is():
  assert options.any_path('gs://a-b/c d/') == 'gs://a-b/c d'
  assert options.any_path('gs://a.b_1/.c/...') == 'gs://a.b_1/.c/...'
  more = (
      'gs://bU/x',
      'gs://b\u00e9/x',
      'gs://ab//x',
      'gs://ab/../x',
      'gs://ab/.',
  )
  for path in ('gs://', 'gs:/bucket/x', 'gs:///x', 'gs://a/b\0', *more):
    with pytest.raises(InputError, match='want gs://bucket/path'):
      options.any_path(path)
  with pytest.raises(InputError, match='no path of this machine'):
    options.any_path('s3://bucket/run')


def knot(*, rope: str = 'hemp', turns: PositiveInt = 2):
  """The options of a tool."""


def hook(depth: float, *, turns: PositiveInt = 5, barbs: PositiveInt = 1):
  """Another; it is told its depth."""


TOOLS = {'knot': knot, 'hook': hook}
TOOLS['long_hook'] = functools.partial(hook, barbs=9)
DEPTH = ('depth',)


class Net(nn.Conv):
  """A layer whose convolution is its place's affair."""

  mesh: PositiveInt = 3
  dtype: Dtype = jnp.float32
  tool: Annotated[str, OneOf(TOOLS)] | None = None
  tool_options: Annotated[
      Mapping[str, Any] | None, Options(TOOLS, by='tool', given=DEPTH)
  ] = None


def boat(
    *,
    length: Annotated[float, Bound(gt=0)],
    crew: Annotated[int, Bound(ge=1, le=9)] = 2,
    motor: bool = False,
    load: options.Fraction = 0.5,
    fuel: options.NonNegativeFloat | None = None,
    sail: Literal['gaff', 'lug'] = 'lug',
    ports: Sequence[str] = (),
    wind: Sequence[float] = (),
    marks: (
        Annotated[tuple[PositiveInt, ...], Bound(min_length=1)] | None
    ) = None,
    grip: PositiveInt | tuple[PositiveInt, PositiveInt] = 1,
    harbour: str | None = None,
    moves: Annotated[
        Sequence[tuple[str, dict[str, Any]]], Steps(TOOLS, 'move', DEPTH)
    ] = (),
    net: Annotated[Mapping[str, Any] | None, Options(Net)] = None,
    gear: Annotated[Mapping[str, Any], Named(TOOLS, 'gear', given=DEPTH)],
):
  """The root of the schema."""


SPARSE = dict(length=7.0, gear=dict(name='knot'))


def complete(changes=None, **overrides):
  """Completes the toy, with texts for paths: `net__mesh='4'`."""
  paths = {f'config.{k.replace("__", ".")}': v for k, v in overrides.items()}
  return engine.complete(SPARSE | (changes or {}), boat, paths)


def faults(changes=None, **overrides):
  with pytest.raises(InputError) as caught:
    complete(changes, **overrides)
  return str(caught.value).splitlines()


def test_a_sparse_config_gets_every_default_of_what_reads_it():
  config = complete(dict(net=dict(mesh=4, tool='hook')))
  none = dict.fromkeys(('fuel', 'marks', 'harbour'))
  net = dict(mesh=4, dtype='float32', tool='hook')
  net['tool_options'] = dict(turns=5, barbs=1)
  gear = dict(name='knot', rope='hemp', turns=2)
  want = dict(length=7.0, crew=2, motor=False, load=0.5, sail='lug', grip=1)
  assert config.to_dict() == want | none | dict(
      wind=(), ports=(), moves=(), net=net, gear=gear
  )
  assert engine.complete(config, boat) == config
  with pytest.raises(AttributeError):  # It is locked.
    config.crwe = 3


def test_a_section_can_be_given_whole():
  before = dict(net=dict(mesh=4, tool='hook', tool_options=dict(barbs=2)))
  config = complete(before, net__tool_options="{'turns': 7}")
  assert config.net.mesh == 4
  assert config.net.tool_options.to_dict() == dict(turns=7, barbs=1)
  config = complete(before, net="{'tool': 'hook'}", crew='3')
  assert config.net.tool_options.to_dict() == dict(turns=5, barbs=1)
  assert config.net.mesh == complete(dict(net={})).net.mesh
  (line,) = faults(before, net__tool_options="{'barsb': 7}")
  assert 'config.net.tool_options.barsb' in line and "'barbs'" in line
  assert complete(before, net='None') == complete(dict(net={}))
  (line,) = faults(before, net='3')
  assert 'config.net=3 must hold options' in line


def test_what_json_makes_of_a_config_is_the_same():
  config = complete(dict(length=7, marks=[1, 2], ports=['a']))
  assert config.marks == (1, 2) and config.ports == ('a',)
  assert isinstance(config.length, float)


@pytest.mark.parametrize(
    'path, text, value',
    [
        ('crew', '3', 3),
        ('length', '3', 3.0),
        ('motor', 'true', True),
        ('fuel', '1e-3', 1e-3),
        ('harbour', '123', '123'),
        ('harbour', 'a,b=c', 'a,b=c'),
        ('harbour', 'None', None),
        ('harbour', 'none', None),
        ('marks', '3,4', (3, 4)),
        ('marks', '3', (3,)),
        ('marks', 'none', None),
        ('marks', 'NULL', None),
        ('marks', '[3, 4]', (3, 4)),
        ('ports', 'Kiel,Riga', ('Kiel', 'Riga')),
        ('ports', "('a,b',)", ('a,b',)),
    ],
)
def test_the_text_of_an_override_is_read_by_the_type_of_its_option(
    path, text, value
):
  got = complete(**{path: text})[path]
  assert got == value and type(got) is type(value)


def test_an_override_of_a_name_brings_its_options_and_drops_the_others():
  config = complete(net__tool='hook', net__tool_options__barbs='3')
  assert config.net.tool_options.to_dict() == dict(turns=5, barbs=3)
  set_ = dict(gear=dict(name='knot', rope='wire', turns=7))
  gear = complete(set_, gear__name='long_hook').gear
  assert gear.to_dict() == dict(name='long_hook', turns=7, barbs=9)
  # What the command line itself gives to the other name is told.
  hook_ = dict(gear=dict(name='hook', barbs=3))
  (line,) = faults(hook_, gear__name='knot', gear__barbs='3')
  assert line.startswith('unknown config.gear.barbs')
  # Also over what is complete already: defaults give way to defaults.
  whole = complete(dict(net=dict(tool='knot')))
  config = engine.complete(whole, boat, {'config.net.tool': 'hook'})
  assert config.net.tool_options.to_dict() == dict(turns=5, barbs=1)
  config = engine.complete(whole, boat, {'config.net.tool': 'None'})
  assert config.net.tool is None and not config.net.tool_options


@pytest.mark.parametrize(
    'changes, line',
    [
        (dict(net=dict(padding=1)), 'unknown config.net.padding; known: dty'),
        (dict(crew=0), 'config.crew=0 must be greater than or equal to 1'),
        (dict(crew='3'), "config.crew='3' must be a valid integer"),
        (dict(motor=1), 'config.motor=1 must be a valid boolean'),
        (dict(fuel=float('nan')), 'config.fuel=nan must be a finite number'),
        (dict(load=1.0), 'config.load=1.0 must be less than 1'),
        (dict(sail='lgu'), "config.sail='lgu' must be 'gaff' or 'lug' (did"),
        (dict(marks=(1, 0)), 'config.marks[1]=0 must be greater than or equal'),
        (dict(ports='Kiel'), "config.ports='Kiel' must be a sequence in b"),
        (dict(fuel=1e39), 'config.fuel=1e+39 must be less than or equal to 3'),
        (dict(wind=(1.0, -math.inf)), 'config.wind[1]=-inf must be a finite'),
        *(
            (dict(net=dict(dtype=name)), f"config.net.dtype='{name}' must be a")
            for name in ('int8', 'bool', 'float8_e4m3fn', 'complex64', 'x')
        ),
        (
            dict(net=dict(dtype='float64')),
            "config.net.dtype='float64' needs JAX_ENABLE_X64=1 in the environ",
        ),
        (dict(marks=()), 'config.marks=() must have at least 1 item'),
        (dict(gear=dict(turns=3)), 'config.gear.name is missing'),
        (
            dict(gear=dict(name='knto')),
            "config.gear.name: unknown gear 'knto' (did you mean 'knot'?)",
        ),
        # As overrides.
        ('crwe=3', "unknown config.crwe (did you mean 'crew'?); known: crew, "),
        ('nets.mesh=3', "unknown config.nets (did you mean 'net'?); known: "),
        ('crew.mesh=3', "unknown config.crew.mesh (did you mean 'config.net.m"),
        ('rope=3', "unknown config.rope (did you mean 'config.gear.rope'?); "),
        (
            'net.tool_options.turns=3',
            "config.net.tool_options={'turns': '3'} needs config.net.tool, wh",
        ),
        # Of what a text may stand for, what came farthest is told.
        ('marks=-1', 'config.marks[0]=-1 must be greater than or equal to 1'),
        ('marks=3,0', 'config.marks[1]=0 must be greater than or equal to 1'),
        ('marks=3,a', "config.marks='3,a' must be a valid tuple"),
        ('grip=(2, 0)', 'config.grip[1]=0 must be greater than or equal to 1'),
        ('grip=0', 'config.grip=0 must be greater than or equal to 1'),
        ('grip=(2,)', 'config.grip=(2,) has too few values'),
        ('ports=(3,)', 'config.ports[0]=3 must be a valid string'),
        ('ports=({},)', 'config.ports[0]={} must be a valid string'),
        (
            'moves=run',
            "config.moves='run' must be a sequence in brackets; each",
        ),
        ('moves=((3, {}),)', 'config.moves[0][0]=3 must be a valid string; ea'),
        ('moves=(("run", {1: 2}),)', 'config.moves[0][1]={1: 2} must be a'),
        ('crew=' + '9' * 999, 'config.crew=' + '9' * 200 + '... must be less'),
        ('crew=all', "config.crew='all' must be a valid integer"),
    ],
)
def test_a_fault_is_one_line_that_begins_with_its_path(changes, line):
  if isinstance(changes, str):
    path, _, text = changes.partition('=')
    (got,) = faults(**{path.replace('.', '__'): text})
  else:
    (got,) = faults(changes)
  assert got.startswith(line)


def test_a_name_with_the_end_of_a_line_makes_no_further_line():
  (line,) = faults({'crew\nerror: all is well': 3})
  assert line.startswith('unknown config.crew\\nerror')


def test_all_faults_are_told_at_once_and_none_twice():
  got = faults(
      dict(crew=0, sale='lug', gear=dict(name='rope')),
      gear__turns='1',  # Of what it would be, nobody knows.
      net__mesh='four',
      length='long',
  )
  assert [line.split('=')[0].split(' (')[0] for line in got] == [
      *('config.length', 'config.crew', 'config.net.mesh'),
      "config.gear.name: unknown gear 'rope'; known: hook, knot, long_hook",
      'unknown config.sale',
  ]
  with pytest.raises(InputError) as caught:
    engine.complete({}, boat)
  lines = ['config.length is missing', 'config.gear is missing']
  assert str(caught.value).splitlines() == lines


def test_arguments_of_a_config_have_the_types_of_their_annotations():
  def recipe(
      a: int = 1,
      b: float = 0.5,
      c: bool = False,
      d: str = 'x',
      e: str | None = None,
  ):
    """Has the arguments of a config."""

  got = engine.arguments('a=2,c=true,b=3,d=7', recipe)
  assert got == dict(a=2, b=3.0, c=True, d='7')
  for text, want in (
      ('e=se', {'e': 'se'}),
      ('e=none', {'e': None}),
      ('e=None', {'e': None}),
      ('d=none', {'d': 'none'}),  # A name, as it cannot be None.
      ('', {}),
  ):
    assert engine.arguments(text, recipe) == want
  with pytest.raises(InputError) as caught:
    engine.arguments('f=1,cc=2,a,a=x,c=1,d=y=z', recipe)
  lines = str(caught.value).splitlines()
  assert [line[:40] for line in lines] == [
      "unknown config argument 'f'; known: a, b",
      "unknown config argument 'cc' (did you me",
      "config argument 'a' is not key=value; wh",
      "config argument a='x' must be a valid in",
      'config argument c=1 must be a valid bool',
      "config argument 'd=y=z' is not key=value",
  ]
