"""A folder behind HTTP on the loopback, with ranges, and every answer late; all together no faster than a rate.

python benchmarks/shards_server.py FOLDER MILLISECONDS [MEGABYTES_A_SECOND]

/sent answers how many requests there were since it was asked last, and how many bytes were sent.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER, LATENCY = Path(sys.argv[1]), float(sys.argv[2]) / 1000
RATE = float(sys.argv[3]) * 1e6 if len(sys.argv) > 3 else None
BLOCK = 256 << 10


class Line:
    """Bytes go over it one block after the other, and are counted."""

    def __init__(self) -> None:
        self._lock, self._free = threading.Lock(), 0.0
        self.requests = self.bytes = 0

    def asked(self) -> None:
        with self._lock:
            self.requests += 1

    def wait(self, count: int) -> None:
        """Until so many bytes have gone over it."""
        with self._lock:
            self.bytes += count
            if RATE is None:
                return
            self._free = max(self._free, time.monotonic()) + count / RATE
            until = self._free
        time.sleep(max(0.0, until - time.monotonic()))

    def counted(self) -> bytes:
        with self._lock:
            found = f"{self.requests} {self.bytes}".encode()
            self.requests = self.bytes = 0
        return found


LINE = Line()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/sent":
            found = LINE.counted()
            self.send_response(200)
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)
            return
        LINE.asked()
        time.sleep(LATENCY)
        with (FOLDER / self.path.lstrip("/")).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            first, last = (int(asked[1]), min(int(asked[2] or size), size - 1)) if asked else (0, size - 1)
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            for at in range(first, last + 1, BLOCK):
                count = min(BLOCK, last + 1 - at)
                LINE.wait(count)
                self.connection.sendfile(file, at, count)

    def log_message(self, *_: object) -> None:
        """Nothing."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()
