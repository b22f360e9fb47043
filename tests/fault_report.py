"""What `make faults` prints and writes: how many faults of each kind held.

A fault is a test with the marker `faults(kind)`.
"""

import json
import pathlib

FILE = '.cache/faults.json'  # One entry for each fault.


def pytest_collection_modifyitems(items):
  for item in items:
    if mark := item.get_closest_marker('faults'):
      item.user_properties.append(('kind', *mark.args))


def pytest_terminal_summary(terminalreporter, config):
  """Writes the table, how to repeat what failed, and the file."""
  if config.option.markexpr != 'faults' or config.option.collectonly:
    return
  write, found = terminalreporter.write_line, _found(terminalreporter)
  row = '{:<16}{:>9}{:>7}{:>8}{:>9}{:>13}'.format
  write(row('kind', 'injected', 'held', 'failed', 'seconds', 'slowest end'))
  by_kind = {fault['kind']: [] for fault in found} | {'all': []}
  for fault in found:
    if fault['outcome'] != 'not injected':
      by_kind[fault['kind']].append(fault)
      by_kind['all'].append(fault)
  for kind, faults in by_kind.items():
    held = sum(fault['outcome'] == 'held' for fault in faults)
    seconds = sum(fault['seconds'] for fault in faults)
    slowest = max((fault['end'] for fault in faults), default=0.0)
    counts = len(faults), held, len(faults) - held
    write(row(kind, *counts, f'{seconds:.0f}', f'{slowest:.1f} s'))
  for fault in found:
    if fault['outcome'] != 'held':
      write('{outcome}: {kind}: {reason}; it alone:'.format_map(fault))
      write(f"  .venv/bin/python -m pytest -m faults '{fault['name']}'")
  path = pathlib.Path(FILE)
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(found, indent=1) + '\n')
  write(f'each fault: {path}')


def _found(reporter):
  """Returns an entry for each fault, by kind and name."""
  faults = {}
  words = dict(passed='held', skipped='not injected')
  for outcome in ('passed', 'skipped', 'failed', 'error'):
    for report in reporter.getreports(outcome):
      known = dict(report.user_properties)
      if 'kind' not in known or (report.passed and report.when != 'call'):
        continue
      crash = getattr(report.longrepr, 'reprcrash', report.longrepr)
      lines = str(getattr(crash, 'message', crash or '')).splitlines()
      faults[report.nodeid] = dict(
          name=report.nodeid,
          kind=known['kind'],
          outcome=words.get(outcome, 'failed'),
          seconds=round(report.duration, 2),
          end=round(known.get('end', report.duration), 2),
          reason=''.join(lines[:1])[:150],
          lines=known.get('lines', []),  # What each process ended with.
      )
  return sorted(
      faults.values(), key=lambda fault: (fault['kind'], fault['name'])
  )
