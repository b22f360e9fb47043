"""Numbers that docs show of a study are those of its runs, which lie beside."""

import re
import shutil

import commands
import pytest

from awconv_jax import figures

RUNS = commands.ROOT / 'docs/results'


@pytest.mark.parametrize('name', [p.name for p in RUNS.iterdir() if p.is_dir()])
def test_a_table_is_made_again_of_its_runs(name, tmp_path, monkeypatch):
  monkeypatch.chdir(commands.ROOT)
  monkeypatch.setattr(figures, 'save', lambda figure, output: output)
  made = tmp_path / name
  shutil.copytree(RUNS / name, made)
  (made / 'results.md').unlink()
  code, _, err = commands.tool(
      *('compare', f'--study=configs/studies/{name}.toml'),
      *(f'--workdir={made}', '--report'),
  )
  assert (code, err) == (0, '')
  text = (made / 'results.md').read_text()
  assert text == (RUNS / name / 'results.md').read_text()
  table = text.split('\n\n')[1]
  assert table in (commands.ROOT / 'docs/results.md').read_text()


def test_the_table_against_the_controls_is_made_again(monkeypatch, tmp_path):
  monkeypatch.chdir(commands.ROOT)
  monkeypatch.setattr(figures, 'save', lambda figure, output: output)
  made, shown = tmp_path / 'made', {}
  shutil.copytree(RUNS / 'cluttered_digits', made)
  for baseline in ('plain wider', 'plain width 32'):
    commands.tool(
        *('compare', '--study=configs/studies/cluttered_digits.toml'),
        *(f'--workdir={made}', '--report', f'--baseline={baseline}'),
    )
    for line in (made / 'results.md').read_text().split('\n'):
      if re.match(r'\| \w', line):
        name, apart = (line.split('|')[i].strip() for i in (1, 4))
        shown.setdefault(name, [name]).append(apart)
  text = (commands.ROOT / 'docs/results.md').read_text()
  found = [[c.strip() for c in line.split('|')] for line in text.split('\n')]
  assert len(shown) == 15
  assert all(['', *row, ''] in found for row in shown.values())
