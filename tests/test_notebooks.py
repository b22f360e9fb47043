"""The notebooks run from top to bottom and show what they promise."""

import commands
import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((commands.ROOT / 'notebooks').glob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.name)
def test_a_notebook_runs(path, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '')  # One device, as a user has.
  # Compiling takes most of the time.
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
  monkeypatch.setenv('MPLBACKEND', 'module://matplotlib_inline.backend_inline')
  notebook = nbformat.read(path, as_version=4)
  stored = [c.get('outputs') for c in notebook.cells if c.cell_type == 'code']
  assert not any(stored), 'commit notebooks without outputs'
  nbclient.NotebookClient(
      notebook, timeout=300, resources={'metadata': {'path': path.parent}}
  ).execute()
  outputs = [o for c in notebook.cells for o in c.get('outputs', ())]
  pictures = [o for o in outputs if 'image/png' in o.get('data', {})]
  text = ''.join(o.get('text', '') for o in outputs)
  assert len(pictures) >= 2
  top1 = float(text.partition('other writers: ')[2].partition('%')[0])
  assert top1 > 90
