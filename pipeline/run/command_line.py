"""The command that started this process, as a person types it: to be given again."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.storage.redaction import redact


def command_line(words: Sequence[str] | None = None) -> str:
    """The command, without the interpreter where a console script was called.

    Passwords in URIs are left out: it is shown, and kept where others read it.

    Args:
        words: What the process was started with (default: this process's own).
    """
    interpreter, *rest = (redact(word) for word in words or sys.orig_argv)
    if rest and _is_script(rest[0]):
        return shlex.join([_short(rest[0]), *rest[1:]])
    return shlex.join([_short(interpreter), *rest])


def _is_script(path: str) -> bool:
    """Whether a word is a program of its own, as the console script `rledit` is."""
    return Path(path).suffix != ".py" and os.access(path, os.X_OK) and Path(path).is_file()


def _short(program: str) -> str:
    """A program's name where the shell finds it by that, else its path from here, else its path."""
    name = Path(program).name
    found = shutil.which(name)
    if found is not None and Path(program).is_absolute() and Path(found).samefile(program):
        return name
    try:
        return str(Path(program).absolute().relative_to(Path.cwd()))
    except ValueError:
        return program
