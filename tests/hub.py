"""A stand-in for the Hugging Face hub: what pushing and pulling ask of it."""

import base64
import contextlib
import hashlib
from http import server
import json
import threading
import urllib.parse


@contextlib.contextmanager
def serve():
  """Gives (address, commits, log) of a hub of this process.

  The commits are {owner/name: {revision: {path: content}}}, and the log has
  the methods and paths asked for.
  """
  commits, log = {}, []

  class Handler(server.BaseHTTPRequestHandler):

    def log_message(self, *arguments):
      pass

    def answer(self, code, content=b'', **headers):
      if not isinstance(content, bytes):
        content = json.dumps(content).encode()
      self.send_response(code)
      headers |= {'Content-Length': len(content)}
      for name, value in headers.items():
        self.send_header(name.replace('_', '-'), str(value))
      self.end_headers()
      if self.command != 'HEAD':
        self.wfile.write(content)

    def missing(self):
      self.answer(404, {'error': 'no such model'}, X_Error_Code='RepoNotFound')

    def do_GET(self):
      path = urllib.parse.unquote(self.path.partition('?')[0])
      log.append(f'{self.command} {path}')
      parts = path.strip('/').split('/')
      if parts[:2] == ['api', 'agent-harnesses']:  # Asked for by its library.
        return self.answer(200, [])
      if parts[:2] == ['api', 'models']:
        name, rest = '/'.join(parts[2:4]), parts[4:]
        revision = rest[1] if rest else 'main'
        if revision not in commits.get(name, {}):
          return self.missing()
        files = commits[name][revision]
        sha = self.sha(files)
        commits[name][sha] = files
        if rest[:1] == ['tree']:
          rows = [
              dict(type='file', path=p, size=len(c), oid=self.sha({p: c}))
              for p, c in files.items()
          ]
          return self.answer(200, rows)
        names = [dict(rfilename=path) for path in files]
        return self.answer(200, dict(id=name, sha=sha, siblings=names))
      name, revision, path = '/'.join(parts[:2]), parts[3], '/'.join(parts[4:])
      content = commits.get(name, {}).get(revision, {}).get(path)
      if content is None:
        return self.missing()
      etag = hashlib.sha256(content).hexdigest()
      return self.answer(200, content, X_Repo_Commit=revision, ETag=etag)

    do_HEAD = do_GET

    def do_POST(self):
      length = int(self.headers.get('Content-Length', 0))
      body = self.rfile.read(length)
      path = urllib.parse.unquote(self.path.partition('?')[0])
      log.append(f'POST {path}')
      parts = path.strip('/').split('/')
      if path == '/api/repos/create':
        told = json.loads(body)
        name = f'{told.get("organization", "me")}/{told["name"]}'
        if name.startswith('others/'):
          return self.answer(403, {'error': 'this is not yours'})
        commits.setdefault(name, {})
        return self.answer(200, {'url': f'{address}/{name}', 'name': name})
      name = '/'.join(parts[2:4])
      if parts[4:5] == ['preupload']:
        files = [
            dict(path=f['path'], uploadMode='regular', shouldIgnore=False)
            for f in json.loads(body)['files']
        ]
        return self.answer(200, {'files': files})
      if parts[4:5] == ['commit']:
        files = dict(commits[name].get(parts[5], {}))
        for line in body.splitlines():
          told = json.loads(line)
          if told['key'] == 'file':
            value = told['value']
            files[value['path']] = base64.b64decode(value['content'])
        commits[name][parts[5]] = files
        url = f'{address}/{name}/commit/{self.sha(files)}'
        return self.answer(200, dict(commitUrl=url, commitOid=self.sha(files)))
      return self.answer(200, {})

    def sha(self, files):
      text = repr(sorted((p, hash(c)) for p, c in files.items()))
      return hashlib.sha1(text.encode()).hexdigest()

  with server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as httpd:
    address = f'http://127.0.0.1:{httpd.server_port}'
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
      yield address, commits, log
    finally:
      httpd.shutdown()
