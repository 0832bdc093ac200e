"""A real HTTP server of the OpenAI-compatible interface, for tests of judges."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rledit.protocols.wild import matches

_GIVEN = re.compile(r"Question: (.*)\nGold target: (.*)\nAnswer: (.*)\n")

Answer = Callable[[str, str, str], str]
"""What a judge replies to a question, its gold target and an answer."""


def honest(_: str, gold: str, answer: str) -> str:
    """A judge that compares texts."""
    return "A" if matches(answer, gold) else "B"


@dataclass
class JudgeServer:
    """What a server is told, and what it was asked.

    Attributes:
        reply: How it judges.
        refusals: Responses given before anything else: status, headers, body.
        asked: (question, gold, answer) of all requests that it answered.
        requests: Bodies of all requests.
        keys: Their headers `Authorization`.
        hold_at: Ordinal of the request that waits for `released`; 0: none.
    """

    reply: Answer = honest
    refusals: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    hold_at: int = 0
    held: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def respond(self, body: dict[str, Any], key: str | None) -> tuple[int, dict[str, str], str]:
        """Status, headers and body for a request."""
        self.requests.append(body)
        self.keys.append(key)
        if len(self.requests) == self.hold_at:
            self.held.set()
            self.released.wait(60)
        if self.refusals:
            return self.refusals.pop(0)
        (given,) = _GIVEN.findall(body["messages"][-1]["content"])
        self.asked.append(given)
        message = {"role": "assistant", "content": self.reply(*given)}
        return 200, {}, json.dumps({"choices": [{"index": 0, "message": message}]})


@contextmanager
def judge_server(**settings: Any) -> Iterator[JudgeServer]:
    """A server on a free port of the loopback interface, ended with the block."""
    told = JudgeServer(**settings)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = json.loads(self.rfile.read(length))
            found = self.path == "/v1/chat/completions"
            key = self.headers["Authorization"]
            status, headers, text = told.respond(body, key) if found else (404, {}, "no such path")
            data = text.encode()
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # the client was killed

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    told.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield told
    finally:
        told.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
