"""Watches one process of several from outside, and ends all when one ends.

A process that is killed, stopped or aborted by native code can say nothing, and
those that work with it hang, or native code aborts them as well. So each has a
watcher, a process of its own that `processes` starts:

  process 1 --socket pair--> its watcher --TCP--> hub, in process 0's watcher

Watchers pass on what processes say; the hub compares the facts of all, and says
what ended one of them to the others. Every watcher then prints one line and
ends its process. This file is run by itself and needs Python alone.
"""

from collections.abc import Callable, Mapping
import contextlib
import json
import os
import re
import selectors
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

JOIN_SECONDS = 20  # For all processes to come, and to find the first.
_SILENT_SECONDS = 12  # Stopped, or nothing heard over the network.
_GRACE_SECONDS = 5  # For what fails to finish a save, with the help of others.
_CAUSE_SECONDS = 3  # An exception may be the echo of what is heard of later.
_HOLD_SECONDS = 3  # Native code's last words are dropped if a line says more.
_TICK = 0.1


class Link:
  """Messages over a socket: dicts, each a line of JSON."""

  def __init__(self, connection: socket.socket):
    connection.settimeout(5)
    self._connection, self._left = connection, b''
    self.heard = time.monotonic()

  def fileno(self) -> int:
    """Returns what selectors want."""
    return self._connection.fileno()

  def close(self) -> None:
    """Closes it."""
    self._connection.close()

  def send(self, **message: Any) -> None:
    """Sends a message; that nobody is there is noticed where one reads."""
    try:
      self._connection.sendall(json.dumps(message).encode() + b'\n')
    except OSError:
      self._left = b''

  def receive(self) -> list[dict[str, Any]] | None:
    """Waits; returns what has come, or None at the end, as of strangers."""
    try:
      data = self._connection.recv(2**16)
      *lines, self._left = (self._left + data).split(b'\n')
      messages = [json.loads(line) for line in lines]
    except (OSError, ValueError):
      return None
    if not data or not all(isinstance(m, dict) for m in messages):
      return None
    self.heard = time.monotonic()
    return messages


def difference(facts: Mapping[int, Mapping[str, Any]]) -> str | None:
  """Returns a line on what processes do not agree on, or None."""
  lines = []
  for key in sorted({key for mine in facts.values() for key in mine}):
    first, *others = (
        (i, repr(mine.get(key, 'absent'))) for i, mine in sorted(facts.items())
    )
    for i, value in others:
      if value != first[1]:
        lines.append(f'{key} is {first[1]} in process 0 and {value} in {i}')
        break
  if not lines:
    return None
  more = f' and {len(lines) - 5} more' * (len(lines) > 5)
  return f'the processes do not agree: {"; ".join(lines[:5])}{more}'


class _Hub(threading.Thread):
  """Hears the watchers of all processes, and tells them how the run ends."""

  def __init__(self, listener: socket.socket, number: int):
    super().__init__(daemon=True)
    self._number, self._listener = number, listener
    self._selector = selectors.DefaultSelector()
    self._selector.register(listener, selectors.EVENT_READ)
    self._members: dict[int, Link] = {}
    self._facts: dict[int, dict] = {}
    self._done: set[int] = set()
    # Of what failed: whether it is through, its line, whether that is a cause.
    self._failed: dict[int, tuple[bool, str, bool]] = {}
    self._since: float | None = None
    self._end: dict | None = None

  def run(self) -> None:
    """Works until all are gone, or know the end."""
    started = beaten = time.monotonic()
    while self._end is None:
      for key, _ in self._selector.select(_TICK):
        if key.fileobj is self._listener:
          self._accept()
        else:
          self._hear(key.data)
      now = time.monotonic()
      if now > beaten + 1:
        beaten = now
        for link in self._members.values():
          link.send(beat=True)
      missing = sorted({*range(self._number)} - {*self._members})
      if missing and now > started + JOIN_SECONDS:
        self.end(None, f'{_named(missing)} did not come in {JOIN_SECONDS} s')
      for i, link in self._members.items():
        if now > link.heard + _SILENT_SECONDS and i not in self._done:
          self.end(None, f'nothing is heard of process {i} any more')
      self._judge(now)
      if not missing and len(self._done) == self._number:
        if not any(link.fileno() >= 0 for link in self._members.values()):
          return
    for link in self._members.values():
      link.send(**self._end)
    # Closed with words unread, a socket would take back what it was told. And
    # some may be about to come.
    until, left = time.monotonic() + 3, self._number
    while left and time.monotonic() < until:
      for key, _ in self._selector.select(_TICK):
        if key.fileobj is self._listener:
          self._accept().send(**self._end)
        elif key.data.receive() is None:
          self._selector.unregister(key.fileobj)
          left -= 1

  def end(self, process: int | None, line: str) -> None:
    """Has all of them end, with a line on one process, or on all."""
    self._end = self._end or dict(end=line, process=process)

  def _accept(self) -> Link:
    link = Link(self._listener.accept()[0])
    self._selector.register(link, selectors.EVENT_READ, link)
    return link

  def _hear(self, link: Link) -> None:
    messages = link.receive()
    if messages is None:
      self._selector.unregister(link)
      link.close()
      who = self._who(link)
      if who is not None and who not in self._done:
        self.end(None, f'process {who}, or its host, is gone')
    for message in messages or ():
      if 'hello' in message:
        self._welcome(link, message['hello'], message['number'])
      elif (who := self._who(link)) is not None:
        self._take(who, message)

  def _who(self, link: Link) -> int | None:
    return next((i for i, m in self._members.items() if m is link), None)

  def _welcome(self, link: Link, who: int, number: int) -> None:
    if who in self._members:
      link.send(end=f'another process has --process_id={who}', process=None)
      return
    self._members[who] = link
    if number != self._number:
      self.end(
          None,
          f'the processes do not agree: --num_processes is {self._number} in '
          f'process 0 and {number} in {who}',
      )

  def _take(self, who: int, message: dict[str, Any]) -> None:
    if 'facts' in message:
      self._facts[who] = message['facts']
      if len(self._facts) == self._number:
        if line := difference(self._facts):
          self.end(None, line)
        self._facts = {}
        with socket.create_server(('', 0)) as free:
          port = free.getsockname()[1]
        for link in self._members.values():
          link.send(port=port)
    elif 'failed' in message:
      self._since = self._since or time.monotonic()
      through = message['through']
      self._failed[who] = through, message['failed'], message['cause']
    elif 'dead' in message:
      self.end(None, message['dead'])
    elif 'done' in message:
      self._done.add(who)

  def _judge(self, now: float) -> None:
    """Ends the run once all that can be known of a failure is known."""
    if self._since is None:
      return
    causes = [(i, f[1]) for i, f in self._failed.items() if f[2]]
    over = all(f[0] for f in self._failed.values()) and (
        causes or now > self._since + _CAUSE_SECONDS
    )
    if over or now > self._since + _GRACE_SECONDS:
      others = [(i, f[1]) for i, f in self._failed.items()]
      self.end(*(causes or others)[0])


class _Watcher:
  """Passes messages on between its process and the hub."""

  def __init__(self, own: Link, words: int, parent: int, index: int):
    self._own, self._words, self._parent = own, words, parent
    self._index = index
    self._hub: Any = None  # The link to it.
    self._thread: _Hub | None = None
    self._held: list[tuple[float, bytes]] = []
    self._failed, self._traceback = False, None
    self._done = self._gone = self._met = False
    self._stopped: float | None = None
    self._dies: float | None = None

  def run(self, address: str, number: int) -> None:
    """Works until its process, or the run, has ended."""
    host, _, port = address.rpartition(':')
    if self._index == 0:
      try:
        listener = _listen(int(port))
      except (OSError, OverflowError) as error:
        code = getattr(error, 'errno', None)
        reason = os.strerror(code) if code else error
        self._finish(f'--coordinator={address}: {reason}; give another port')
      self._thread = _Hub(listener, number)
      self._thread.start()
      host = 'localhost'
    # Until the hub is found, what its process says waits in the socket.
    self._hub = self._connect(host.strip('[]'), int(port), address)
    self._hub.send(hello=self._index, number=number)
    selector = selectors.DefaultSelector()
    readers: dict[Any, Callable[[], bool]] = {
        self._own: self._hear_own,
        self._hub: lambda: self._hear_hub(address),
        self._words: self._hear_words,
    }
    for reader in readers:
      selector.register(reader, selectors.EVENT_READ)
    beaten = 0.0
    while not (self._done and self._gone):
      for key, _ in selector.select(_TICK):
        if not readers[key.fileobj]():
          selector.unregister(key.fileobj)
      now = time.monotonic()
      if now > beaten + 1:
        beaten = now
        self._hub.send(beat=True)
        self._look(now)
      if now > self._hub.heard + _SILENT_SECONDS and not self._done:
        self._finish(f'nothing is heard of process 0 at {address} any more')
      if self._dies is not None and now > self._dies:
        self._dies = None
        self._report_death()
      self._let_out(now - _HOLD_SECONDS)
    self._let_out(now)
    self._leave()

  def _connect(self, host: str, port: int, address: str) -> Link:
    until = time.monotonic() + JOIN_SECONDS
    while True:
      try:
        return Link(socket.create_connection((host, port), timeout=5))
      except (OSError, OverflowError) as error:
        if time.monotonic() > until or os.getppid() != self._parent:
          reason = getattr(error, 'strerror', None) or error
          self._finish(f'process 0 is not at --coordinator={address}: {reason}')
      time.sleep(_TICK)

  def _hear_own(self) -> bool:
    messages = self._own.receive()
    if messages is None:
      self._gone = True
      if not (self._done or self._failed):
        # Native code that aborts says why; it may be the end of another.
        loud = bool(self._held)  # A second later, then.
        self._dies = time.monotonic() + loud
      return False
    for message in messages:
      self._done = self._done or 'done' in message
      self._failed = self._failed or 'failed' in message
      self._traceback = message.pop('traceback', self._traceback)
      self._hub.send(**message)
    return True

  def _hear_hub(self, address: str) -> bool:
    messages = self._hub.receive()
    if messages is None:
      if not self._met:
        self._finish(f'at --coordinator={address} there is no process 0')
      if self._done:
        return False
      self._finish('process 0, or its host, is gone')
    self._met = True
    for message in messages:
      if 'end' in message:
        who = message['process']
        other = '' if who in (None, self._index) else f'process {who}: '
        text = self._traceback if who == self._index else None
        self._finish(message['end'], text, other)
      elif 'port' in message:
        self._own.send(**message)
    return True

  def _hear_words(self) -> bool:
    words = os.read(self._words, 2**16)
    self._held.append((time.monotonic(), words))
    return bool(words)

  def _let_out(self, until: float) -> None:
    while self._held and self._held[0][0] <= until:
      _say(self._held.pop(0)[1])

  def _look(self, now: float) -> None:
    """Notices that its process is stopped, where there is /proc."""
    try:
      with open(f'/proc/{self._parent}/stat', encoding='latin-1') as file:
        state = file.read().rpartition(')')[2].split()[0]
    except OSError:
      return
    self._stopped = (self._stopped or now) if state == 'T' else None
    if self._stopped and now > self._stopped + _SILENT_SECONDS:
      self._stopped = None
      self._die(f'was stopped for {_SILENT_SECONDS} s, as by SIGSTOP')

  def _report_death(self) -> None:
    words = b''.join(words for _, words in self._held).decode(errors='replace')
    lines = [line for line in words.splitlines() if line.strip()]
    fatal = [
        line for line in lines if re.match(r'Fatal|F\d{4} |terminate', line)
    ]
    said = (fatal or lines[-1:])[:1]
    self._die(f'crashed: {said[0][:300]}' if said else 'was killed')

  def _die(self, how: str) -> None:
    self._hub.send(dead=f'process {self._index} {how}')

  def _finish(
      self, line: str, traceback: str | None = None, other: str = ''
  ) -> NoReturn:
    """Says why the run ends, and ends its process."""
    lines = [f'error: {other}{part}\n' for part in line.splitlines()]
    _say((traceback or ''.join(lines)).encode())
    self._own.send(end=line)
    for patience in (2.0, 2.0):
      until = time.monotonic() + patience
      while os.getppid() == self._parent and time.monotonic() < until:
        time.sleep(_TICK / 2)
      if os.getppid() == self._parent:
        os.kill(self._parent, signal.SIGKILL)
    self._leave()

  def _leave(self) -> NoReturn:
    if self._hub is not None:
      self._hub.close()
    if self._thread is not None:
      self._thread.join(30)
    os._exit(0)


def _say(words: bytes) -> None:
  with contextlib.suppress(OSError):  # Nobody may listen any more.
    os.write(2, words)


def _named(processes: list[int]) -> str:
  several = 'es' * (len(processes) > 1)
  return f'process{several} {", ".join(map(str, processes))}'


def _listen(port: int) -> socket.socket:
  if socket.has_dualstack_ipv6():
    family = socket.AF_INET6
    return socket.create_server(
        ('', port), family=family, dualstack_ipv6=True, backlog=1024
    )
  return socket.create_server(('', port), backlog=1024)


def main() -> None:
  """Watches the process that started it."""
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)  # They are for its process.
  own, words, parent, index, number = map(int, sys.argv[2:])
  link = Link(socket.socket(fileno=own))
  _Watcher(link, words, parent, index).run(sys.argv[1], number)


if __name__ == '__main__':
  main()
