"""SIGTERM as an exception: a driver that is told to end closes what it has opened, and says so."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


class Terminated(Exception):
    """The process was told to end."""


class _Told(BaseException):
    """Passes every ``except Exception`` on its way out: MLflow makes its own errors of those."""


@contextmanager
def ended_by_signal() -> Iterator[Callable[[], None]]:
    """Leave the context with `Terminated` when SIGTERM comes; once is enough, a second one waits.

    Yields:
        A function that raises where SIGTERM has come already: what is raised inside compiled code,
        as Ray's is, may be lost there.

    Raises:
        Terminated: SIGTERM came, whatever else went wrong while things were closed.
    """
    told = False

    def check() -> None:
        if told:
            raise _Told

    def end(_: int, __: FrameType | None) -> None:
        nonlocal told
        if not told:
            told = True
            raise _Told

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield check
    except BaseException as error:
        if not told:
            raise
        logger.debug("told to end: %r", error)
        raise Terminated(
            "ended by SIGTERM; run the same command again to go on from here"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def handler_kept(block: bool) -> Iterator[None]:
    """Put this process's handler of SIGTERM back at the end: connecting to Ray replaces it.

    Args:
        block: Keep a SIGTERM that comes meanwhile for the end; Ray's handlers exit on the spot, or
            print a stack of addresses. Processes that are started inside would not hear it either.
    """
    before = signal.getsignal(signal.SIGTERM)
    if block:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if block:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
