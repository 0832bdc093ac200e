"""Start a worker script once per rank, and never leave one behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


def launch(
    module: str, size: int, folder: Path, timeout: float, *, memory_counts: bool = True
) -> list[dict[str, Any]]:
    """Run ``python -m module RANK SIZE FOLDER`` as every rank.

    Args:
        module: The worker; it writes what it found to ``FOLDER/RANK.json`` and meets the others at
            ``file://FOLDER/rendezvous``.
        size: Number of ranks.
        folder: A folder of this launch's own.
        timeout: Seconds until all ranks are killed.
        memory_counts: Freed tensors return to the system at once, so that resident memory is what
            is alive. It costs time: off where that counts.

    Returns:
        What each rank wrote.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    if memory_counts:
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    deadline = time.monotonic() + timeout
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(size):
            with (folder / f"{rank}.log").open("wb") as log:
                command = [sys.executable, "-m", module, str(rank), str(size), str(folder)]
                ranks.append(
                    subprocess.Popen(
                        command,
                        cwd=REPOSITORY,
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        # A rank that failed leaves the others waiting for it: the first failure ends all.
        while any(r.poll() is None for r in ranks) and not any(r.poll() for r in ranks):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        codes = [r.poll() for r in ranks]
    finally:
        for process in ranks:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if any(codes) or None in codes:
        logs = "\n".join(
            f"--- rank {i}:\n{(folder / f'{i}.log').read_text()[-4000:]}" for i in range(size)
        )
        raise RuntimeError(
            f"{module}: exit codes {codes} (None: killed after {timeout:.0f} s)\n{logs}"
        )
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]
