"""Commands in processes forked from one that has imported everything: most of a command is that."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pipeline.cli
from tests.chaos.driver import ORIGIN, PRELOADED

# What commands import when they run, Ray and MLflow among it: in a process that uses neither.
PRELOADED += [
    *(__name__, "pipeline.results.report", "pipeline.results.query", "pipeline.submit.client"),
    *("mlflow.store.tracking.sqlalchemy_store", "transformers.models.auto.modeling_auto"),
]


def forked(
    arguments: Sequence[str], environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m pipeline.cli ARGUMENTS`` in a process of its own, without its imports.

    Args:
        arguments: Of the command.
        environment: The whole environment of the process.
        timeout: Seconds until it is killed.

    Raises:
        subprocess.TimeoutExpired: It was.
    """
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        streams = Path(folder, "stdout"), Path(folder, "stderr")
        for stream in streams:
            stream.touch()
        own = (command, dict(environment), Path.cwd(), streams)
        process = ORIGIN.Process(target=_main, args=own)
        process.start()
        try:
            process.join(timeout)
            if process.exitcode is None:
                raise subprocess.TimeoutExpired(command, timeout)
        finally:
            process.kill()
            process.join()
        out, err = (stream.read_text() for stream in streams)
    return subprocess.CompletedProcess(command, process.exitcode, out, err)


def _main(
    command: list[str], environment: dict[str, str], folder: Path, streams: tuple[Path, Path]
) -> None:
    """The command's whole life."""
    for number, stream in enumerate(streams, start=1):
        with stream.open("wb") as output:
            os.dup2(output.fileno(), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.orig_argv = command
    sys.argv = [str(Path(pipeline.cli.__file__).with_name("__main__.py")), *command[3:]]
    sys.exit(pipeline.cli.main())
