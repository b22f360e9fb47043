"""Numbers that docs show of a study are those of its runs, which lie beside."""

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
