"""Replies of judges, kept in the lake: no question is asked twice, whoever asks it and when.

Each reply is an object of its own as soon as it is there, ``judge_replies/asked/HASH.json``, so
that a run which is killed loses none. A run that ends puts what has gathered into one file.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from pipeline.results.judge.endpoint import Endpoint
from pipeline.results.judge.prompt import PROMPT_VERSION, verdict_of
from pipeline.storage.object_store import Storage

FOLDER = "judge_replies"
_LOOSE = f"{FOLDER}/asked"
_READERS = 16


@dataclass(frozen=True, kw_only=True)
class AnswerToJudge:
    """An answer that a judge is asked about."""

    question: str
    gold: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a judge said, as it said it.

    Attributes:
        asked_at: In UTC, ISO 8601.
    """

    key: str
    prompt_version: int
    model: str
    url: str
    question: str
    gold: str
    answer: str
    reply: str
    asked_at: str

    @property
    def verdict(self) -> bool | None:
        """Whether it says that the answer is correct; None where it says neither."""
        return verdict_of(self.reply)


def reply_key(endpoint: Endpoint, asked: AnswerToJudge, *, gate: bool = False) -> str:
    """Hash of the prompt's version, the model and what it is asked about.

    A question of the gate also goes by the URL: a name says nothing of who answers there.
    """
    told = [PROMPT_VERSION, endpoint.model, asked.question, asked.gold, asked.answer]
    told += ["gate", endpoint.url] if gate else []
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


class Replies:
    """All replies of a lake; may be added to by several threads.

    Args:
        storage: The lake's.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._known: dict[str, Reply] = {}
        names = storage.list(FOLDER)
        with ThreadPoolExecutor(_READERS) as pool:
            for lines in pool.map(self._read, names):
                self._known.update({reply.key: reply for reply in lines})

    def get(self, key: str) -> Reply | None:
        """The reply of a key, if it is known."""
        return self._known.get(key)

    def keep(self, reply: Reply) -> None:
        """Keep a reply; afterwards no end of the process loses it."""
        self._storage.write_bytes(_loose(reply.key), _lines([reply]))
        with self._lock:
            self._known[reply.key] = reply

    def forget(self, keys: Iterable[str]) -> None:
        """Take out replies that were not gathered into one file yet."""
        for key in keys:
            self._storage.delete(_loose(key))
            self._known.pop(key, None)

    def gather(self) -> None:
        """Put the single replies into one file."""
        names = [name for name in self._storage.list(_LOOSE) if name.endswith(".json")]
        found = [reply for name in names for reply in self._read(name)]
        if len(found) < 2:
            return
        data = _lines(sorted(found, key=lambda reply: reply.key))
        digest = hashlib.sha256(data).hexdigest()[:16]
        self._storage.write_bytes(f"{FOLDER}/{digest}.jsonl", data)
        for name in names:
            self._storage.delete(name)

    def _read(self, name: str) -> list[Reply]:
        try:
            data = self._storage.read_bytes(name)
        except FileNotFoundError:  # gathered meanwhile by another run
            return []
        return [Reply(**json.loads(line)) for line in data.splitlines() if line.strip()]


def _loose(key: str) -> str:
    return f"{_LOOSE}/{key}.json"


def _lines(replies: Iterable[Reply]) -> bytes:
    # ASCII: U+2028 and the like inside a text are no ends of lines then.
    return b"".join(json.dumps(asdict(reply)).encode() + b"\n" for reply in replies)
