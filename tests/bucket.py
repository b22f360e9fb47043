"""A bucket on this machine, and what befalls requests to it.

  python tests/bucket.py PORT [EVERY [NUMBER]] [> faults.txt]

It is gcp-storage-emulator, in memory, with what it lacks: that writes and
removals heed `ifGenerationMatch`, and that reads tell the generation, as locks
need it; and the range of a file's end, as array_record asks for it. Of
its requests, one of so many then meets a fault, each kind in turn, until there
were so many; each is printed in a line.
"""

import http
import importlib.util
import itertools
import os
import pathlib
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import commands
import pytest

NAME = 'bucket'
KINDS = '503', '429', 'cut off', 'answer lost', 'stalled', '500'
LACKING = [
    name
    for name in ('gcsfs', 'gcp_storage_emulator')
    if importlib.util.find_spec(name) is None
]
needed = pytest.mark.skipif(
    bool(LACKING), reason=f"pip install 'awconv_jax[test]' for {LACKING}"
)


def environment(port):
  """Returns the variables by which all that reads buckets reads this one."""
  place = f'http://localhost:{port}'
  return {
      'STORAGE_EMULATOR_HOST': place,
      'TENSORSTORE_GCS_HTTP_URL': place,
      'CLOUD_STORAGE_EMULATOR_ENDPOINT': place,
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'x',
      # Whose client for kinds of buckets the emulator has not.
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
      # Whoever looks for others, and for a TPU VM's, takes half a minute.
      'NO_GCE_CHECK': 'true',
      'FSSPEC_GCS_TOKEN': 'anon',
  }


def start(*faults, output=subprocess.DEVNULL):
  """Starts one with an empty bucket; returns (process, variables)."""
  port = commands.free_port()
  process = subprocess.Popen(
      [sys.executable, __file__, str(port), *map(str, faults)],
      stdout=output,
      stderr=subprocess.DEVNULL,
      cwd=pathlib.Path(__file__).parent,
  )
  for _ in range(100):
    time.sleep(0.1)
    try:
      urllib.request.urlopen(f'http://localhost:{port}/', timeout=5).close()
      return process, environment(port)
    except OSError:
      assert process.poll() is None
  raise AssertionError('it did not start')


def use(patch, variables):
  """Has this process, and those that it starts, read and write that one."""
  import fsspec

  for name, value in variables.items():
    patch.setenv(name, value)
  # As it does with the variables when it is first imported.
  fsspec.config.set_conf_env(fsspec.config.conf)


def _generation(storage, bucket, name):
  from gcp_storage_emulator.exceptions import NotFound

  try:
    return str(storage.get_file_obj(bucket, name)['generation'])
  except NotFound:
    return '0'


def _is_refused(handler, url):
  """Returns whether a request is for another generation than there is."""
  query = dict(urllib.parse.parse_qsl(url.query))
  wanted = query.get('ifGenerationMatch')
  # Resumed uploads were checked when they began.
  if wanted is None or handler.command == 'GET' or 'upload_id' in query:
    return False
  _, _, rest = url.path.partition('/b/')
  bucket, _, name = rest.partition('/o')
  name = urllib.parse.unquote(name[1:]) or query['name']
  return _generation(handler.storage, bucket, name) != wanted


def serve(port, every=0, number=0):
  """Serves until it is ended."""
  from gcp_storage_emulator import server
  from gcp_storage_emulator.handlers import objects

  download, count = objects.download, itertools.count(1)
  kinds = itertools.cycle(KINDS)
  left = [number]

  def downloaded(request, response, storage, *args, **kwargs):
    place = request.params['bucket_name'], request.params['object_id']
    of_end = re.fullmatch('bytes=-([0-9]+)', request.get_header('range') or '')
    if of_end and _generation(storage, *place) != '0':
      first = max(len(storage.get_file(*place)) - int(of_end[1]), 0)
      headers = request._request_handler.headers
      headers.replace_header('range', f'bytes={first}-')
    download(request, response, storage, *args, **kwargs)
    response['x-goog-generation'] = _generation(storage, *place)

  # Both are named in tables that are already made.
  server.HANDLERS = tuple(
      (
          regex,
          {m: downloaded if f is download else f for m, f in table.items()},
      )
      for regex, table in server.HANDLERS
  )
  get = objects.get
  server.HANDLERS = tuple(
      (
          regex,
          {
              m: (
                  (
                      lambda q, r, s, *a, **k: (
                          downloaded if q.query.get('alt') == ['media'] else get
                      )(q, r, s, *a, **k)
                  )
                  if f is get
                  else f
              )
              for m, f in table.items()
          },
      )
      for regex, table in server.HANDLERS
  )

  class Handler(server.RequestHandler):

    def answer(self, status):
      self.rfile.read(int(self.headers.get('Content-Length') or 0))
      self.send_response(status)
      self.send_header('Content-Length', '0')
      self.end_headers()

    def handle_one(self):
      url = urllib.parse.urlparse(self.path)
      fault = None
      if url.path != '/' and left[0] and next(count) % every == 0:
        left[0] -= 1
        fault = next(kinds)
        print(fault, self.command, self.path, flush=True)
      if fault and fault.isdecimal():
        return self.answer(int(fault))
      if fault == 'stalled':
        time.sleep(3)
        return self.drop()
      if fault == 'cut off':
        size = int(self.headers.get('Content-Length') or 0)
        if size:  # Half of what is sent.
          self.rfile.read(size // 2)
          return self.drop()
        wfile, self.wfile = self.wfile, _Half(self.wfile)
        server.Router(self).handle(self.command)
        self.wfile = wfile
        return self.drop()
      if _is_refused(self, url):
        return self.answer(http.HTTPStatus.PRECONDITION_FAILED)
      if fault == 'answer lost':
        wfile, self.wfile = self.wfile, open(os.devnull, 'wb')
        server.Router(self).handle(self.command)
        self.wfile = wfile
        return self.drop()
      server.Router(self).handle(self.command)

    def drop(self):
      self.close_connection = True
      self.wfile.flush()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one  # noqa: N815

  server.RequestHandler = Handler
  server.create_server(
      'localhost', port, in_memory=True, default_bucket=NAME
  ).run()


class _Half:
  """Lets half of an answer through."""

  def __init__(self, file):
    self._file = file

  def write(self, data):
    return self._file.write(data[: len(data) // 2]) and len(data)

  def flush(self):
    self._file.flush()


if __name__ == '__main__':
  serve(*map(int, sys.argv[1:]))
