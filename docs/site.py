"""Writes the pages of the site, for `make docs`.

  python docs/site.py build/pages

Pages are the documents of the repository, the options of configs (as
`train.py --print_config` has them), and a page for each public module, made of
its signatures and docstrings.
"""

import functools
import inspect
import pathlib
import posixpath
import re
import shutil
import sys
import types
import typing

from awconv_jax import manual, options
from awconv_jax.config import default_of
from awconv_jax.data import sources
from awconv_jax.layers import attention
from awconv_jax.train import settings

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = {'README.md': 'index.md'}
PAGES |= {f'{n}.md': f'{n.lower()}.md' for n in ('CONTRIBUTING', 'CHANGELOG')}
PAGES |= {f'docs/{p.name}': p.name for p in ROOT.glob('docs/*.md')}
_LINK = re.compile(r'(?<=\]\()(?!\w+:|#)([^)#\s]+)')
# What a function finds by name, for sections that go by one.
_FOUND = {
    'reader_of': (
        sources.DATASETS
        | {f'{kind}:name': entry for kind, entry in sources.KINDS.items()}
    ),
    'find': attention.ATTENTION,
}


def main(folder: pathlib.Path) -> None:
  """Writes all pages into a folder, and what their links lead to."""
  for source, page in PAGES.items():
    text = (ROOT / source).read_text()
    above = posixpath.dirname(source)
    links = functools.partial(_target, above=above, folder=folder)
    _write(folder / page, _LINK.sub(links, text))
  _write(folder / 'reference/config.md', '\n'.join(_options_page()) + '\n')
  for path in sorted((ROOT / 'awconv_jax').rglob('*.py')):
    name = path.relative_to(ROOT / 'awconv_jax').with_suffix('').as_posix()
    module = f'awconv_jax/{name}'.removesuffix('/__init__')
    page = f'{module}/index.md' if path.stem == '__init__' else f'{module}.md'
    name = module.replace('/', '.')
    _write(folder / 'reference' / page, f'# `{name}`\n\n::: {name}\n')


def _write(path: pathlib.Path, text: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)


def _target(found: re.Match, above: str, folder: pathlib.Path) -> str:
  """Returns what a link of a document is on the site; copies a file there."""
  path = posixpath.normpath(posixpath.join(above, found[0]))
  if path in PAGES or not (ROOT / path).is_file():
    return PAGES.get(path, found[0])  # The builder reports what is missing.
  (folder / 'files' / path).parent.mkdir(parents=True, exist_ok=True)
  shutil.copyfile(ROOT / path, folder / 'files' / path)
  return f'files/{path}'


def _options_page():
  yield (
      '# Options of a config\n\nEvery option of `--config`, by what reads it: '
      '`--config.model.width=32` sets `width` of the model. `train.py '
      '--config=digits --print_config` prints those of one config, with its '
      'values.\n'
  )
  seen = set()
  yield from _section('config', settings.Settings, (), seen)


def _section(title, target, given, seen):
  """Yields the table of what reads options, then those of its sections."""
  plain = getattr(target, 'func', target)
  if not getattr(target, 'args', ()):
    target = plain  # With the defaults of the class, not of one name of many.
  if plain in seen:
    return
  seen.add(plain)
  known = {
      name: option
      for name, option in options.options_of(target).items()
      if name not in given
  }
  if not known:
    return
  texts, inner = manual.meanings(plain), []
  where = f'{plain.__module__}.{plain.__qualname__}'
  yield f'\n## {title}\n\nRead by `{where}`.\n'
  yield '| option | values | default | meaning |\n|---|---|---|---|'
  for name, option in known.items():
    marker, default = options.marker_of(option), ''
    if marker:
      inner.append((name, marker))
    elif option.default is not inspect.Parameter.empty:
      default = f'`{default_of(option)!r}`'
    cells = (
        f'`{name}`',
        _values(option.annotation),
        default,
        texts.get(name, ''),
    )
    yield f'| {" | ".join(c.replace("|", "&#124;") for c in cells)} |'
  for name, marker in inner:
    here = f'{title.partition(" ")[0]}.{name}'
    if marker.by is None:
      yield from _section(here, marker.of, marker.given, seen)
      continue
    named = marker.of
    if callable(named):
      named = _FOUND[named.__name__]
    for key, entry in named.items():
      if isinstance(entry, tuple):  # What reads a data set, once it is opened.
        entry = functools.partial(entry[0], None)
      yield from _section(f'{here} of {key}', entry, marker.given, seen)


def _values(annotation):
  """Returns what an option may be, in words."""
  if annotation is type(None):
    return 'None'
  inner = typing.get_args(annotation)
  if not hasattr(annotation, '__metadata__'):
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
      return ' or '.join(map(_values, inner))
    return getattr(annotation, '__name__', str(annotation)) + (
        f'[{", ".join(_values(a) for a in inner if a is not ...)}]'
        if inner and typing.get_origin(annotation) is not typing.Literal
        else f' {inner}' * bool(inner)
    )
  parts = [_values(inner[0])]
  for extra in annotation.__metadata__:
    if isinstance(extra, options.OneOf):
      parts = [', '.join(f'`{name}`' for name in extra.names)]
      parts += ['or `module:Class`'] * extra.own
    elif isinstance(extra, options.Bound):
      signs = dict(ge='≥', gt='>', le='≤', lt='<', min_length='length ≥')
      parts += [
          f'{sign} {getattr(extra, key):g}'
          for key, sign in signs.items()
          if getattr(extra, key) not in (None, options.MOST)
      ]
  return ' '.join(parts)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
