"""SIGTERM as an exception: a driver that is told to end closes what it has opened, and says so."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


class Terminated(Exception):
    """The process was told to end."""


class _Told(BaseException):
    """Passes every ``except Exception`` on its way out: MLflow makes its own errors of those."""


class Ending:
    """Whether the process was told to end; once is enough, a second SIGTERM changes nothing."""

    def __init__(self) -> None:
        self.told = False
        self._shields = 0

    def hear(self, _: int, __: FrameType | None) -> None:
        """The handler of SIGTERM."""
        if not self.told:
            self.told = True
            if not self._shields:
                raise _Told

    def check(self) -> None:
        """Raise where SIGTERM has come: inside compiled code, as Ray's is, it may get lost."""
        if self.told:
            raise _Told

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Finish what is begun here; a SIGTERM that comes meanwhile is raised at the end."""
        before = self.told
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        if not before:
            self.check()


@contextmanager
def ended_by_signal() -> Iterator[Ending]:
    """Leave the context with `Terminated` when SIGTERM comes.

    Raises:
        Terminated: SIGTERM came, whatever else went wrong while things were closed.
    """
    ending = Ending()
    before = signal.signal(signal.SIGTERM, ending.hear)
    try:
        yield ending
    except BaseException as error:
        if not ending.told:
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
