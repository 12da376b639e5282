"""A server on this machine, which gives one file at every address, as badly as it is told."""

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Serving:
    content: bytes
    root: str
    """What addresses begin with."""
    ranges: bool = True
    wrong_range: bool = False
    status: int | None = None
    breaks_after: int | None = None
    """Bytes of a response after which the connection is closed."""
    silent: float = 0
    """Seconds before the body."""
    asked: list = field(default_factory=list)
    """The Range of each request."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        serving = self.server.serving
        asked = self.headers.get("Range")
        serving.asked.append(asked)
        if serving.status:
            self.send_error(serving.status)
            return
        total = len(serving.content)
        start = int(asked[6:-1]) if asked and serving.ranges else 0
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = start + 1 if start and serving.wrong_range else start
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        time.sleep(serving.silent)
        self.wfile.write(serving.content[start:][: serving.breaks_after])

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(content: bytes) -> Iterator[Serving]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.serving = Serving(content, f"http://127.0.0.1:{server.server_port}/")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.serving
        server.shutdown()
