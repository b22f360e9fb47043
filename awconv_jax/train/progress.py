"""Progress of a run: a live bar on a terminal, plain lines elsewhere."""

from collections.abc import Mapping
import sys
import time

from tqdm import tqdm


def _duration(seconds: float) -> str:
  """Returns a time such as '4:05' or '1:02:03'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (
      f'{hours}:{minutes:02}:{seconds:02}'
      if hours
      else (f'{minutes}:{seconds:02}')
  )


class Progress:
  """Shows step, loss, learning rate, images per second and time left.

  Args:
    total: steps of the whole run.
    start: steps taken before.
    batch_size: images per step.
    show: False for silence (all processes but the first).
  """

  def __init__(self, total: int, *, start: int, batch_size: int, show: bool):
    self._total, self._batch_size, self._show = total, batch_size, show
    self._seen, self._since, self._rate = start, time.monotonic(), 0.0
    self._waited = 0.0
    self._bar = None
    if show and sys.stdout.isatty():
      self._bar = tqdm(
          total=total,
          initial=start,
          file=sys.stdout,
          unit='step',
          dynamic_ncols=True,
          bar_format='{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {postfix}',
      )

  def restart(self, step: int) -> None:
    """Starts the clock anew, after a pause such as an evaluation."""
    self._seen, self._since, self._waited = step, time.monotonic(), 0.0

  def waited(self, seconds: float) -> None:
    """Takes the time in which there was no batch to go on with."""
    self._waited += seconds

  def advance(self) -> None:
    """Moves the bar by one step."""
    if self._bar is not None:
      self._bar.update()

  def report(self, step: int, scalars: Mapping[str, float]) -> dict[str, float]:
    """Shows where the run stands.

    Args:
      step: steps taken.
      scalars: 'loss' and 'learning_rate'.

    Returns:
      What was since the last report: 'images_per_second', and 'data_wait', the
      share of the time in which there was no batch to go on with.
    """
    seconds = max(time.monotonic() - self._since, 1e-9)
    if step > self._seen:
      self._rate = (step - self._seen) / seconds
    rate, wait = self._rate, min(self._waited / seconds, 1.0)
    self.restart(step)
    images = rate * self._batch_size
    left = (self._total - step) / rate if rate else 0.0
    text = (
        f'loss {scalars["loss"]:.4f}  lr {scalars["learning_rate"]:.2e}  '
        f'{images:,.0f} images/s  {_duration(left)} left'
    )
    if self._bar is not None:
      self._bar.set_postfix_str(text)
    elif self._show:
      print(f'step {step}/{self._total}  {text}', flush=True)
    return {'images_per_second': images, 'data_wait': wait}

  def say(self, text: str) -> None:
    """Prints a line of its own, above the bar."""
    if self._bar is not None:
      self._bar.write(text, file=sys.stdout)
    elif self._show:
      print(text, flush=True)

  def close(self) -> None:
    """Leaves the bar as it stands."""
    if self._bar is not None:
      self._bar.close()
