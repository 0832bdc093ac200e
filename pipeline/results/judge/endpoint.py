"""Client of an OpenAI-compatible endpoint: one question, one reply, with patience.

The key is read from an environment variable and stands in the request's header alone: it is in no
message, no representation and no reply that is given back.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pipeline.storage.redaction import HIDDEN, redact
from rledit.errors import UserError

KEY_VARIABLE = "RLEDIT_JUDGE_KEY"
MAX_TOKENS = 4
_ATTEMPTS = 7
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 120.0  # seconds
_TIMEOUT = 120.0  # seconds of a request
_MOST_BYTES = 1 << 20
_TRY_AGAIN = frozenset({408, 409, 425, 429, *range(500, 600)})
_PATH = "/chat/completions"


class JudgeError(UserError, RuntimeError):
    """A judge cannot be asked, does not answer, or is not fit to judge."""


class _Passing(Exception):
    """A request failed in a way that may pass; the text says how.

    Attributes:
        wait: Seconds after which the server wants to be asked again; None: it does not say.
    """

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.wait = wait


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A model behind an OpenAI-compatible interface.

    Attributes:
        url: Base URL, without `/chat/completions`.
        model: The model's name there.
        key: The key; empty where the server wants none.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.model} at {self.url}"

    def without_key(self, text: str) -> str:
        """A text without the key."""
        return text.replace(self.key, HIDDEN) if self.key else text


def open_endpoint(
    url: str,
    model: str,
    key_variable: str = KEY_VARIABLE,
    environment: Mapping[str, str] = os.environ,
) -> Endpoint:
    """The endpoint of a URL and a model, with the key of an environment variable if it is set.

    Raises:
        JudgeError: The URL is none of a server, or carries a secret; or the key cannot be sent.
    """
    if any(mark in url for mark in "@?#"):
        # What stands there may be a secret: the URL is not repeated.
        raise JudgeError(
            "--judge: the URL carries a user, a query or a fragment; leave these out, and put the "
            f"key into the environment variable {key_variable}"
        )
    if not _names_server(url):
        raise JudgeError(
            f"--judge {url}: expected the base URL of an OpenAI-compatible endpoint, such as "
            "https://api.openai.com/v1 or http://localhost:8000/v1"
        )
    if not model.strip():
        raise JudgeError("a judge needs the name of its model: --model, or --judge-model for run")
    key = environment.get(key_variable, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise JudgeError(
            f"the environment variable {key_variable} holds spaces or characters that no key has; "
            "set it to the key alone"
        )
    base = url.rstrip("/").removesuffix(_PATH).rstrip("/")
    return Endpoint(url=base, model=model.strip(), key=key)


def _names_server(url: str) -> bool:
    """Whether a URL is one of HTTP, with a host and a port that can be."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would take the key to another server."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Judge:
    """Asks an endpoint, as often a minute as it may be asked; may be used by several threads.

    Args:
        endpoint: Who is asked.
        per_minute: Most requests a minute; None: no limit of ours.
        first_wait: Seconds before a request that failed is made again; doubled each time.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        per_minute: float | None = None,
        first_wait: float = _FIRST_WAIT,
    ) -> None:
        self.endpoint = endpoint
        self._pause = 60.0 / per_minute if per_minute else 0.0
        self._first_wait = first_wait
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._lock = threading.Lock()
        self._next = 0.0
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ends all waiting: threads that ask give up."""
        self._stopped.set()

    def ask(self, prompt: str) -> str:
        """The raw reply to a prompt, without the key if it should repeat that.

        Raises:
            JudgeError: The server refuses the request, or fails several times in a row.
        """
        wait = self._first_wait
        for attempt in range(1, _ATTEMPTS + 1):
            self._wait_for_turn()
            try:
                return self._reply(prompt)
            except _Passing as error:
                if attempt == _ATTEMPTS:
                    raise JudgeError(self._said(f"failed {attempt} times: {error}")) from None
                self._rest(min(_LONGEST_WAIT, max(wait, error.wait or 0.0)))
                wait *= 2
        raise AssertionError("a request is answered or fails")

    def _wait_for_turn(self) -> None:
        with self._lock:
            turn = max(time.monotonic(), self._next)
            self._next = turn + self._pause
        self._rest(turn - time.monotonic())

    def _rest(self, seconds: float) -> None:
        if self._stopped.wait(max(0.0, seconds)):
            raise JudgeError(self._said("is not asked any more"))

    def _reply(self, prompt: str) -> str:
        try:
            with self._opener.open(self._request(prompt), timeout=_TIMEOUT) as response:
                body = response.read(_MOST_BYTES)
        except urllib.error.HTTPError as error:
            raise self._refused(error) from None
        except (OSError, http.client.HTTPException) as error:
            # A chain of errors would show the request again.
            raise _Passing(f"{type(error).__name__}: {error}") from None
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise _Passing(f"no reply of the interface's form, but {self._shown(body)!r}") from None
        return self.endpoint.without_key("" if content is None else str(content))

    def _request(self, prompt: str) -> urllib.request.Request:
        asked = {
            "model": self.endpoint.model,
            "messages": [
                {"role": "system", "content": ""},
                {"role": "user", "content": prompt},
            ],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        headers = {"Content-Type": "application/json"}
        if self.endpoint.key:
            headers["Authorization"] = f"Bearer {self.endpoint.key}"
        data = json.dumps(asked).encode()
        return urllib.request.Request(f"{self.endpoint.url}{_PATH}", data=data, headers=headers)

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        """What a status means, without the body where that may repeat a key."""
        with error:
            said = f"HTTP {error.code} {error.reason}"
            if error.code in (401, 403):
                return JudgeError(
                    self._said(f"{said}: it does not take the key; set it in the environment")
                )
            body = self._shown(error.read(_MOST_BYTES))
        if error.code in _TRY_AGAIN:
            return _Passing(f"{said} {body}", _seconds(error.headers.get("Retry-After")))
        if 300 <= error.code < 400:
            said += ": it sends the request elsewhere, where the key would go too; give that URL"
        return JudgeError(self._said(f"{said} {body}".rstrip()))

    def _shown(self, body: bytes) -> str:
        """The beginning of a body, without the key: cut afterwards, so that no part is left."""
        return self.endpoint.without_key(body.decode(errors="replace"))[:300]

    def _said(self, text: str) -> str:
        return redact(self.endpoint.without_key(f"the judge {self.endpoint} {text}"))


def _seconds(value: str | None) -> float | None:
    """The seconds of a header Retry-After; None where it names none."""
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:
        return None
