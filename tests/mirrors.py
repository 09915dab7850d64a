"""A host of checkpoints on 127.0.0.1, which also speaks as Hugging Face does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Reply:
    """An answer. announced: Content-Length, None sends none. waits_at: bytes sent before `open` is met."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    announced: int | None = -1
    waits_at: int | None = None


@dataclass
class Mirror:
    """Answers paths (without queries) from `replies`, all others with 404."""

    port: int = 0
    replies: dict[str, Reply] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    waiting: threading.Event = field(default_factory=threading.Event)
    open: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """The address of a path."""
        return f"http://{host}:{self.port}{path}"

    def put(self, path: str, body: bytes = b"", **reply: object) -> str:
        """Answer that path so from now on; returns its address."""
        self.replies[path] = Reply(body, **reply)  # type: ignore[arg-type]
        return self.url(path)

    def put_repository(self, repository: str, file: str, body: bytes, **reply: object) -> None:
        """A repository whose branch main is at COMMIT."""
        answer = json.dumps({"id": repository, "sha": COMMIT}).encode()
        self.put(f"/api/models/{repository}/revision/main", answer)
        self.put(f"/{repository}/resolve/{COMMIT}/{file}", body, **reply)


@contextmanager
def mirroring() -> Iterator[Mirror]:
    """A mirror without files, whose `open` is not set."""
    mirror = Mirror()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            mirror.asked.append(self.path)
            reply = mirror.replies.get(self.path.partition("?")[0], Reply(status=404))
            self.send_response(reply.status)
            length = len(reply.body) if reply.announced == -1 else reply.announced
            sizes = {} if length is None else {"Content-Length": str(length)}
            for name, value in {**sizes, **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body[: reply.waits_at])
            if reply.waits_at is not None:
                mirror.waiting.set()
                mirror.open.wait(60)
                self.wfile.write(reply.body[reply.waits_at :])

        def log_message(self, *args: object) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[assignment,method-assign]
    mirror.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield mirror
    finally:
        mirror.open.set()
        server.shutdown()
        thread.join()
        server.server_close()
