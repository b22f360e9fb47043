"""Watches one process of several from outside, and ends all when one ends.

A process that is killed, stopped or aborted by native code can say nothing, and
those that work with it hang, or native code aborts them as well. So each has a
watcher, a process of its own that `processes` starts:

  process 1 --socket pair--> its watcher --TCP--> hub, in process 0's watcher

Watchers pass on what processes say; the hub compares the facts of all, and says
what ended one of them to the others. Every watcher then prints one line and
ends its process. This file is run by itself and needs Python alone.

Who is not greeted as one of the processes is not heard. Beyond that the hub
trusts its network, as JAX's own service does.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from typing import Any, NoReturn

_SILENT_SECONDS = 12  # Stopped, or nothing heard over the network.
_GRACE_SECONDS = 5  # To finish a save, or to hear what an error is the echo of.
_HOLD_SECONDS = 3  # Native code's last words are dropped if a line says more.
_KNOCK_SECONDS = 15  # To find the first for what has failed by then.
_LONGEST = 2**22  # Bytes of a message.


class _Link:
  """Messages over a socket: dicts, each a line of JSON."""

  def __init__(
      self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
  ):
    self._reader, self._writer = reader, writer
    self.close = writer.close

  def send(self, **message: Any) -> None:
    """Sends a message; that nobody is there is noticed where one reads."""
    if not self._writer.is_closing():
      self._writer.write(json.dumps(message).encode() + b'\n')

  @classmethod
  async def over(cls, connection: socket.socket) -> '_Link':
    """Returns one over a connected socket."""
    return cls(*await asyncio.open_connection(sock=connection, limit=_LONGEST))

  async def messages(
      self, seconds: float | None = None
  ) -> AsyncIterator[dict[str, Any]]:
    """Yields them up to the end, as which silence and strange words count."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
      while True:
        async with asyncio.timeout(seconds):
          message = json.loads(await self._reader.readline())
        if not isinstance(message, dict):
          return
        yield message


def difference(facts: Mapping[int, Mapping[str, Any]]) -> str | None:
  """Returns a line on what processes do not agree on, or None."""
  lines = []
  for key in sorted(set().union(*facts.values())):
    values = {i: repr(facts[i].get(key, 'absent')) for i in sorted(facts)}
    others = [i for i in values if values[i] != values[0]]
    for i in others[:1]:
      lines.append(f'{key} is {values[0]} in process 0 and {values[i]} in {i}')
  if not lines:
    return None
  more = f' and {len(lines) - 5} more' * (len(lines) > 5)
  return f'the processes do not agree: {"; ".join(lines[:5])}{more}'


class _Hub:
  """Hears the watchers of all processes, and tells them how the run ends."""

  def __init__(self, address: str, number: int, seconds: int):
    self._address, self._number, self._seconds = address, number, seconds
    self._members: dict[int, _Link] = {}
    self._facts: dict[int, dict] = {}
    self._done: set[int] = set()
    self._left: set[int] = set()
    self._failed: list[dict] = []
    self._end: dict | None = None
    self.all_left = asyncio.Event()

  async def serve(
      self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
  ) -> None:
    """Hears one watcher, to its end."""
    link, who = _Link(reader, writer), None
    async for message in link.messages(_SILENT_SECONDS):
      if who is not None:
        self._take(who, message)
      elif isinstance(message.get('hello'), int):
        who = self._welcome(link, message['hello'], message.get('number'))
    link.close()
    if who is not None:
      if who not in self._done:
        self._finish(f'process {who}, or its host, is gone')
      self._left.add(who)
      if len(self._left) == self._number:
        self.all_left.set()

  def _welcome(self, link: _Link, who: int, number: int | None) -> int | None:
    complete = len(self._members) == self._number
    if number != self._number:
      here = f'--num_processes is {self._number} in process 0'
      line = f'the processes do not agree: {here} and {number} in {who}'
    elif complete or who in self._members:
      line = f'another process has --process_id={who}'
    else:
      self._members[who] = link
      if self._end is not None:
        link.send(**self._end)
      return who
    link.send(end=line, process=None)
    if not complete:  # Of a launch that went wrong, and would be waited for.
      self._finish(line)

  def _take(self, who: int, message: dict[str, Any]) -> None:
    if 'facts' in message:
      self._facts[who] = message['facts']
      if len(self._facts) == self._number:
        if line := difference(self._facts):
          self._finish(line)
        self._facts = {}
        with socket.create_server(('', 0)) as free:
          port = free.getsockname()[1]
        for link in self._members.values():
          link.send(port=port)
    elif 'failed' in message:
      self._failed.append(message)
      # What is no cause may be the echo of what is heard of later; and what
      # fails may yet finish a save, with the help of others.
      known = message['cause'] and message['through']
      wait = 0 if known else _GRACE_SECONDS
      asyncio.get_running_loop().call_later(wait, self._judge)
    elif 'done' in message:
      self._done.add(who)

  def _judge(self) -> None:
    causes = [message for message in self._failed if message['cause']]
    first = (causes or self._failed)[0]
    self._finish(first['failed'], first['process'])

  def _finish(self, line: str, process: int | None = None) -> None:
    """Has all of them end, with a line on one process, or on all."""
    if self._end is None:
      self._end = dict(end=line, process=process)
      for link in self._members.values():
        link.send(**self._end)

  async def beat(self) -> None:
    """Lets watchers know that it is there, and whom it waits for."""
    for second in range(1, sys.maxsize):
      await asyncio.sleep(1)
      missing = sorted({*range(self._number)} - {*self._members})
      names = f'process{"es" * (len(missing) > 1)} {str(missing)[1:-1]}'
      if missing and second >= self._seconds:
        self._finish(
            f'{names} of {self._number} did not come to {self._address} in '
            f'--join_seconds={self._seconds}'
        )
      waits = f'waiting for {names} of {self._number} at {self._address}'
      for link in self._members.values():
        link.send(beat=waits if missing and second % 30 == 10 else '')


class _Watcher:
  """Passes messages on between its process and the hub."""

  def __init__(self, address: str, words: int, parent: int, index: int):
    self._address, self._words = address, words
    self._parent, self._index = parent, index
    self._own: Any = None  # The link to its process.
    self._hub: Any = None  # That to the hub.
    self._all_left: asyncio.Event | None = None  # Of its own hub.
    self._unsent: list[dict] = []
    self._held: list[tuple[float, bytes]] = []
    self._failed = self._traceback = self._taken = ''
    self._done = False

  async def run(self, own: int, number: int, seconds: int) -> None:
    """Works until its process, or the run, has ended."""
    self._own = await _Link.over(socket.socket(fileno=own))
    asyncio.get_running_loop().add_reader(self._words, self._hear_words)
    async with asyncio.TaskGroup() as tasks:
      host, _, port = self._address.rpartition(':')
      if self._index == 0:
        hub, host = _Hub(self._address, number, seconds), 'localhost'
        try:
          await asyncio.start_server(hub.serve, None, int(port), limit=_LONGEST)
          self._all_left = hub.all_left
          tasks.create_task(hub.beat())
        except OSError as error:
          # If it is another process 0 that has it, both are to hear of it.
          self._taken = (
              f'--coordinator={self._address}: {os.strerror(error.errno)}; '
              'give another port, by JAX_COORDINATOR_PORT if JAX found this one'
          )
      for part in self._hear_own, self._look, self._let_out:
        tasks.create_task(part())
      found = await self._find((host.strip('[]'), int(port)), seconds)
      self._hub = await _Link.over(found)
      for message in dict(hello=self._index, number=number), *self._unsent:
        self._hub.send(**message)
      await self._hear_hub()

  async def _find(self, place: tuple[str, int], seconds: int) -> socket.socket:
    """Returns a connection to the hub, which may come later than this."""
    began, told = time.monotonic(), -20
    while True:
      try:
        return await asyncio.to_thread(socket.create_connection, place, 5)
      except OSError as error:
        reason = error.strerror or error
      except UnicodeError as error:  # No host has such a name.
        reason, seconds = error, 0
      if self._taken:
        await self._finish(self._taken)
      waited = time.monotonic() - began
      if waited > (min(_KNOCK_SECONDS, seconds) if self._failed else seconds):
        line = f'process 0 is not at --coordinator={self._address}: {reason}'
        line += f'; it did not come in --join_seconds={seconds}' * bool(seconds)
        await self._finish(self._failed or line, self._traceback)
      if waited > told + 30:
        told = waited
        await _say(f'waiting for process 0 at {self._address}: {reason}\n')
      await asyncio.sleep(0.2)

  def _tell(self, **message: Any) -> None:
    if self._hub is None:
      self._unsent.append(message)
    else:
      self._hub.send(**message)

  async def _hear_own(self) -> None:
    async for message in self._own.messages():
      self._done = self._done or 'done' in message
      self._failed = message.get('failed', self._failed)
      self._traceback = message.pop('traceback', self._traceback)
      self._tell(**message, process=self._index)
    if self._done:
      await self._leave()
    if not self._failed:
      # Native code that aborts says why; it may be the end of another, which is
      # then heard of first.
      await asyncio.sleep(bool(self._held))
      words = b''.join(words for _, words in self._held).decode(
          errors='replace'
      )
      lines = [line for line in words.splitlines() if line.strip()]
      fatal = [x for x in lines if re.match(r'Fatal|F\d{4} |terminate', x)]
      said = (fatal or lines[-1:])[:1]
      self._die(f'crashed: {said[0][:300]}' if said else 'was killed')

  def _die(self, how: str) -> None:
    self._failed = f'process {self._index} {how}'
    self._tell(failed=self._failed, process=None, cause=True, through=True)

  async def _hear_hub(self) -> None:
    line = f'at --coordinator={self._address} there is no process 0'
    line = self._taken or line
    async for message in self._hub.messages(_SILENT_SECONDS):
      line = 'process 0, or its host, is gone'
      if message.get('beat'):
        await _say(message['beat'] + '\n')
      elif 'end' in message:
        own = (who := message['process']) == self._index
        other = '' if own or who is None else f'process {who}: '
        text = self._traceback if own else ''
        more = f' ({self._taken})' * bool(self._taken)
        await self._finish(message['end'] + more, text, other)
      elif 'port' in message:
        self._own.send(**message)
    if not self._done:
      await self._finish(line)

  async def _look(self) -> None:
    """Notices that its process is stopped, where there is /proc."""
    stopped = 0
    while True:
      await asyncio.sleep(1)
      if self._hub is not None:
        self._hub.send(beat='')
      with contextlib.suppress(OSError):
        with open(f'/proc/{self._parent}/stat', encoding='latin-1') as file:
          state = file.read().rpartition(')')[2].split()[0]
        stopped = stopped + 1 if state == 'T' else 0
      if stopped == _SILENT_SECONDS:
        self._die(f'was stopped for {_SILENT_SECONDS} s, as by SIGSTOP')

  def _hear_words(self) -> None:
    words = os.read(self._words, 2**16)
    self._held.append((time.monotonic(), words))
    if not words:
      asyncio.get_running_loop().remove_reader(self._words)

  async def _let_out(self, seconds: float = _HOLD_SECONDS) -> None:
    while seconds or self._held:
      while self._held and time.monotonic() >= self._held[0][0] + seconds:
        await _say(self._held.pop(0)[1])
      await asyncio.sleep(0.1)

  async def _finish(
      self, line: str, traceback: str = '', other: str = ''
  ) -> NoReturn:
    """Says why the run ends, and ends its process."""
    lines = [f'error: {other}{part}\n' for part in line.splitlines()]
    with contextlib.suppress(TimeoutError):  # A terminal may be held.
      await asyncio.wait_for(_say(traceback or ''.join(lines)), 2)
    self._own.send(end=True)
    until = time.monotonic() + 2
    while os.getppid() == self._parent:
      if time.monotonic() > until:
        os.kill(self._parent, signal.SIGKILL)
      await asyncio.sleep(0.05)
    await self._leave()

  async def _leave(self) -> NoReturn:
    if self._done:
      await self._let_out(0)
    if self._hub is not None:
      self._hub.close()
    if self._all_left is not None:
      with contextlib.suppress(TimeoutError):
        limit = None if self._done else 3
        await asyncio.wait_for(self._all_left.wait(), limit)
    os._exit(0)


async def _say(words: str | bytes) -> None:
  if isinstance(words, str):
    words = words.encode(errors='backslashreplace')
  with contextlib.suppress(OSError):  # Nobody may listen any more.
    # In a thread: who holds up the output holds up nothing else.
    await asyncio.to_thread(os.write, 2, words)


def main() -> None:
  """Watches the process that started it."""
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)  # They are for its process.
  own, words, parent, index, number, seconds = map(int, sys.argv[2:])
  watching = _Watcher(sys.argv[1], words, parent, index)
  asyncio.run(watching.run(own, number, seconds))


if __name__ == '__main__':
  main()
