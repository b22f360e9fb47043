"""Errors whose message is the whole story: one line, shown without traceback.

`train.py` and the tools print a `ReportedError` as one line and exit with 1;
every other exception is a defect of ours and keeps its traceback.
"""

from collections.abc import Iterable
import difflib


class ReportedError(Exception):
  """Says what is wrong, where, and what to do about it, in one line."""


class InputError(ReportedError, ValueError):
  """A config value, file or argument that cannot be used as given."""


class DivergenceError(ReportedError, FloatingPointError):
  """The loss, the gradients or the parameters are no longer finite."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> InputError:
  """Returns the error for a name that a registry does not hold.

  Args:
    kind: what is named, such as 'model' or 'dataset'.
    name: the name given.
    known: all names that would have been accepted.

  Returns:
    An `InputError` naming the value, the nearest known name and all of them.
  """
  known = sorted(known)
  near = difflib.get_close_matches(str(name), known, n=1)
  hint = f' (did you mean {near[0]!r}?)' if near else ''
  return InputError(f'unknown {kind} {name!r}{hint}; known: {", ".join(known)}')
