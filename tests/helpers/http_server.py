"""A server of one folder on this machine, which misbehaves as it is told."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclasses.dataclass
class Server:
    """What it serves and how; change it at any time.

    Attributes:
        folder: the files.
        url: of the folder, with a slash at the end.
        requests: the ``Range`` header of every request, "" where there was none.
        ranges: whether it answers with ranges.
        breaks_after: bytes of a body after which it breaks off.
        breaks_first: it breaks off before the body, at the first request for each range.
        added: bytes that it adds to the size that it states.
        shifted: bytes by which it is off when it states, and sends, a range.
        tags: the headers that tell this version of a file from another.
        later: what it serves from the second request on, and ``later_tags`` with it.
        breaks_once: bytes of the first body after which it breaks off.
        busy: how many further requests it answers with 503.
        sent: (path, bytes of the body) of every answer.
    """

    folder: Path
    url: str = ""
    requests: list[str] = dataclasses.field(default_factory=list)
    ranges: bool = True
    breaks_after: int | None = None
    breaks_first: bool = False
    added: int = 0
    shifted: int = 0
    tags: dict[str, str] = dataclasses.field(default_factory=lambda: {"ETag": '"1"'})
    later: bytes | None = None
    later_tags: dict[str, str] | None = None
    breaks_once: int | None = None
    busy: int = 0
    sent: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        settings: Server = self.server.settings
        wanted = self.headers.get("Range", "")
        with settings.lock:  # ranges of one file are asked for at once
            settings.requests.append(wanted)
            place = len(settings.requests)
        if settings.breaks_first and settings.requests.count(wanted) == 1:
            self.close_connection = True
            return
        if settings.busy:
            settings.busy -= 1
            self.send_error(503)
            return
        path = settings.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content, tags = path.read_bytes(), settings.tags
        if settings.later is not None and place > 1:
            content, tags = settings.later, settings.later_tags or tags
        total = len(content) + settings.added
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted) if settings.ranges else None
        if found is None:
            self.send_response(200)
            self.send_header("Content-Length", str(total))
        else:
            first, end = int(found[1]) + settings.shifted, int(found[2] or total - 1) + 1 + settings.shifted
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{total}")
            self.send_header("Content-Length", str(end - first))
            content = content[first:end]
        for name, value in tags.items():
            self.send_header(name, value)
        self.end_headers()
        first_only = settings.breaks_once if place == 1 else None
        body = content[: first_only or settings.breaks_after]
        settings.sent.append((self.path.lstrip("/"), len(body)))
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve a folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        settings = Server(folder, f"http://127.0.0.1:{server.server_port}/")
        server.settings = settings  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield settings
        finally:
            server.shutdown()
            thread.join()
