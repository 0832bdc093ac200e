"""Handling of SIGTERM and Ctrl-C: a driver that is asked to stop closes what it has opened."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.run.command_line import command_line

logger = logging.getLogger(__name__)

INTERRUPTED = 130  # the exit code of shells for a process that Ctrl-C has ended
CLOSING = "\ninterrupted: ending what runs; press Ctrl-C again to leave at once\n"
AT_ONCE = (
    "\nleft at once; finished cells are kept, and the same command goes on from the last saved "
    "states: {}\nThe tracked run may still say RUNNING: the next run of the grid, or `rledit "
    "close-stale-runs`, closes it\n"
)


class Terminated(Exception):
    """The process was told to end."""


class Interrupted(BaseException):
    """Ctrl-C was pressed; the text says what is kept and how to go on.

    No `KeyboardInterrupt`, of which typer makes its own message, and no `Exception`, so that it
    passes whoever handles errors.
    """


class _StopRequested(BaseException):
    """Passes every ``except Exception`` on its way out: MLflow makes its own errors of those."""


class SignalHandler:
    """Whether the process was told to end; once is enough, a second SIGTERM changes nothing."""

    def __init__(self) -> None:
        self.stop_requested = False
        self.interrupted = False
        self._shields = 0

    def handle(self, number: int, _: FrameType | None) -> None:
        """The handler of SIGTERM and SIGINT."""
        if number == signal.SIGINT:
            if self.interrupted:
                leave_at_once()
            self.interrupted = True
            _say(CLOSING)
        if not self.stop_requested:
            self.stop_requested = True
            if not self._shields:
                raise _StopRequested

    def check(self) -> None:
        """Raise where a signal has come: inside compiled code, as Ray's is, it may get lost."""
        if self.stop_requested:
            raise _StopRequested

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Finish what is begun here; a signal that comes meanwhile is raised at the end."""
        before = self.stop_requested
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        if not before:
            self.check()


@contextmanager
def ended_by_signal() -> Iterator[SignalHandler]:
    """Leave the context with `Terminated` when SIGTERM comes, with `Interrupted` on Ctrl-C.

    Raises:
        Terminated: SIGTERM came, whatever else went wrong while things were closed.
        Interrupted: Ctrl-C was pressed, likewise.
    """
    signals = SignalHandler()
    before = signal.signal(signal.SIGTERM, signals.handle)
    try:
        with _on_interrupt(signals.handle):
            yield signals
    except BaseException as error:
        if not signals.stop_requested:
            raise
        logger.debug("told to end: %r", error)
        if signals.interrupted:
            raise Interrupted from None
        raise Terminated(
            "ended by SIGTERM; run the same command again to go on from here"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def interruptible() -> Iterator[None]:
    """Leave the context with `Interrupted` on Ctrl-C, wherever the program is."""

    def handle(_: int, __: FrameType | None) -> None:
        signal.signal(signal.SIGINT, _leave)  # the second time
        raise Interrupted

    with _on_interrupt(handle):
        yield


def leave_at_once() -> None:
    """End this process without closing anything; Ray's processes on this machine end with it."""
    _say(AT_ONCE.format(command_line()))
    os._exit(INTERRUPTED)


def leave_on_interrupt() -> None:
    """From here on, when all is said, Ctrl-C ends this process without a word."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))


def _leave(_: int, __: FrameType | None) -> None:
    leave_at_once()


def _say(text: str) -> None:
    """Write from a handler: the stream may be in the middle of a write of its own."""
    os.write(2, text.encode())


@contextmanager
def _on_interrupt(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Take SIGINT; a shell's background process, which is to ignore it, goes on ignoring it."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
