"""A manager of services over HTTP, on loopback: restarts each service once per key."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeManager:
    """Use it as a context; `restarts` and `all_clears` say what was done, with its key."""

    def __init__(self, token):
        self.token = token
        self.restarts = {}
        self.all_clears = {}
        self.refuses_with = None
        self._lock = threading.Lock()
        manager = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = manager._answer(self.path, self.headers, body)
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/api"

    def _answer(self, path, headers, body):
        if self.refuses_with is not None:
            return self.refuses_with, {}
        if headers["Authorization"] != f"Bearer {self.token}":
            return 401, {}
        done = {"/api/restart": self.restarts, "/api/all-clear": self.all_clears}.get(path)
        if done is None:
            return 404, {}
        with self._lock:
            done.setdefault(headers["Idempotency-Key"], body["service"])
            return 200, {"restart": list(done).index(headers["Idempotency-Key"]) + 1}

    def __enter__(self):
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
