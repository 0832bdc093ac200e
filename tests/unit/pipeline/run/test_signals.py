"""Signals: a driver that is asked to stop closes what it has opened, whatever it is doing."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

from pipeline.run.signals import (
    Interrupted,
    Terminated,
    ended_by_signal,
    handler_kept,
    interruptible,
)


def tell() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def handler() -> Any:
    """Whatever happens, no other test meets a handler of these."""
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("SIGTERM came out"))
    yield signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


def test_it_is_said_with_the_remedy_and_the_handler_is_put_back(handler: Any) -> None:
    closed = []
    again = pytest.raises(Terminated, match="run the same command again")
    with again as caught, ended_by_signal():
        try:
            tell()
        finally:
            closed.append(True)
    assert closed and caught.value.__suppress_context__
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_library_that_turns_errors_into_its_own_does_not_keep_it() -> None:
    with pytest.raises(Terminated), ended_by_signal():
        try:
            tell()
        except Exception as error:
            raise RuntimeError("the store failed") from error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_was_lost_in_compiled_code_is_found_at_the_next_look() -> None:
    class Callback:
        def __del__(self) -> None:
            tell()  # Python prints what a finaliser raises, and goes on

    reached = []
    with pytest.raises(Terminated), ended_by_signal() as signals:
        signals.check()
        Callback()
        reached.append("after")
        signals.check()
    assert reached


def test_a_second_signal_and_an_error_while_closing_change_nothing() -> None:
    with pytest.raises(Terminated), ended_by_signal():
        try:
            tell()
        finally:
            tell()
            raise SystemError("a result with an exception set")


def test_errors_of_the_work_are_its_own() -> None:
    with pytest.raises(SystemError, match="its own"), ended_by_signal():
        raise SystemError("its own")
    with ended_by_signal() as signals:
        signals.check()


@pytest.mark.parametrize("block", [True, False])
def test_connecting_keeps_the_handler(block: bool) -> None:
    def deadly(*_: Any) -> None:
        raise AssertionError("Ray's handler was called")

    with pytest.raises(Terminated), ended_by_signal():
        with handler_kept(block):
            signal.signal(signal.SIGTERM, deadly)
            if block:
                # To this thread: another one of the process might not keep it back.
                signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        assert not block, "the signal waits no longer than the connecting"
        tell()


def test_what_is_shielded_is_finished_first() -> None:
    """A run that MLflow has made and not closed would stay open."""
    closed: list[str] = []
    with pytest.raises(Terminated), ended_by_signal() as signals:
        try:
            with signals.shielded():
                signal.raise_signal(signal.SIGTERM)
                closed.append("cell")
            closed.append("never")
        finally:
            with signals.shielded():
                closed.append("invocation")
    assert closed == ["cell", "invocation"]


# Ctrl-C ------------------------------------------------------------------------------------------


@pytest.fixture
def pressing() -> Any:
    """SIGINT as in a terminal, and whatever happens, as it was for the next test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_in_order_and_is_no_keyboard_interrupt(
    pressing: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Typer makes "Aborted." of a KeyboardInterrupt, and libraries their own errors."""
    closed = []
    with pytest.raises(Interrupted) as caught, ended_by_signal():
        try:
            pressing()
        except Exception as error:
            raise RuntimeError("the store failed") from error
        finally:
            closed.append(True)
    assert closed and not isinstance(caught.value, KeyboardInterrupt | Exception)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert "press Ctrl-C again to leave at once" in capfd.readouterr().err


def test_what_is_shielded_is_finished_before_ctrl_c_ends_it(pressing: Any) -> None:
    finished = []
    with pytest.raises(Interrupted), ended_by_signal() as signals:
        with signals.shielded():
            pressing()
            finished.append(True)
        finished.append("not reached")
    assert finished == [True]


@pytest.mark.parametrize("context", [ended_by_signal, interruptible])
def test_a_second_ctrl_c_leaves_at_once(
    context: Any, pressing: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    with pytest.raises(Interrupted), context():
        try:
            pressing()
        finally:
            pressing()
            assert left == [130]
    said = capfd.readouterr().err
    assert "left at once; finished cells are kept, and the same command goes on" in said


@pytest.mark.parametrize("context", [ended_by_signal, interruptible])
def test_a_process_of_the_background_goes_on(context: Any, pressing: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with context():
        pressing()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
