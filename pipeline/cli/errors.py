"""Expected errors are answers to the user: one message, no trace."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from pipeline.run.command_line import command_line
from pipeline.run.signals import (
    INTERRUPTED,
    Interrupted,
    Terminated,
    interruptible,
    leave_on_interrupt,
)
from rledit.errors import UserError

logger = logging.getLogger(__name__)

_GO_ON = "interrupted; nothing is half-written, and the same command may be given again: {}"


@contextmanager
def errors_as_help() -> Iterator[None]:
    """Print an expected error as one message; anything else is a bug and keeps its trace.

    Expected are `UserError` and all below it, a file or folder that the system refuses, and the end
    that the process was told to come to. Ctrl-C says what is kept, and exits with 130; a second one
    ends the process at once.
    """
    try:
        with interruptible():
            yield
    except Interrupted as interrupted:
        leave_on_interrupt()
        typer.echo(f"\n{str(interrupted) or _GO_ON.format(command_line())}", err=True)
        raise SystemExit(INTERRUPTED) from None
    except (UserError, Terminated) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except OSError as error:
        logger.debug("refused by the system", exc_info=error)
        typer.echo(f"error: {_refused(error)}", err=True)
        raise SystemExit(2) from None


def _refused(error: OSError) -> str:
    """What the system refused, where, and what to do about it."""
    if error.filename is None or error.strerror is None:
        return f"{type(error).__name__}: {error}"
    remedy = {
        errno.EACCES: "; you may not write or read there: choose another place (--results, --lake, "
        "--cache, --out), or change its permissions",
        errno.EROFS: "; choose a place that can be written to (--results, --lake, --cache, --out)",
        errno.ENOTDIR: "; a file stands where a folder is needed: choose another place, or move it",
        errno.EEXIST: "; a file stands where a folder is needed: choose another place, or move it"
        if os.path.isfile(error.filename)
        else "; choose another place, or move what is there",
        errno.ENOSPC: "; make room there, or choose another place (--results, --lake, --cache)",
    }.get(error.errno or 0, "")
    return f"{error.filename}: {error.strerror}{remedy}"
