"""What one GPU is asked, part by part, the most telling part first; what is done is not done again.

Every part runs in a process of its own, so that a part that fails or is ended takes nothing with
it, and its result is written into one JSON file before the next begins: of a part whose time is
over, what it had measured by then.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.agreement import device_agreement
from tests.benchmarks.clock import ClockKind
from tests.benchmarks.machine import describe, memory, reset_peak_memory
from tests.benchmarks.presets import RUNNERS, Choices, choose
from tests.benchmarks.whole_job import run_whole_job


@dataclass(frozen=True, kw_only=True)
class Steps:
    """A part that times steps.

    Attributes:
        preset: Name of the benchmark's preset.
        edits: Edits a batch.
        token_budget: Padded tokens of a physical batch; None: what an accelerator has.
    """

    preset: str
    edits: int
    token_budget: int | None = None


STEPS = {
    "llama3-8b, 20 edits": Steps(preset="llama3-8b", edits=20),
    # Of 2,000 prompts a physical batch is full (of 400 none is, they differ in length). A plan has
    # 63 GB with 8,192 tokens in it and 44 with 4,096; the reference implementation's model comes
    # to 16 beside that, and its network.
    "llama3-8b, 100 edits": Steps(preset="llama3-8b", edits=100, token_budget=4096),
    "mistral-7b, 20 edits": Steps(preset="mistral-7b", edits=20),
    "gpt-j-6b, 20 edits": Steps(preset="gpt-j-6b", edits=20),
}
WHOLE, AGREEMENT = "smollm2-135m, whole job", "cpu against gpu"
PARTS = ("llama3-8b, 20 edits", AGREEMENT, WHOLE, *list(STEPS)[1:])
LARGEST_SHARE = 0.5
"""Of the time left, what a part may take while others wait behind it."""
_LEAST_SECONDS = 20.0
_MEASURED = "measured "  # begins the lines that a part says as it goes
# Options that figures depend on: those of all parts, of steps, and of the whole job.
_OF_ALL = ("device", "threads")
_OF_STEPS = ("layers", "edits", "repeats", "without_reference")
_OF_WHOLE = ("model", "rows", "batches", "trajectories")


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Run the parts that are not done, as far as the time goes.

    Returns:
        All that the file holds now: part → its figures, or why there are none.
    """
    chosen = _parser().parse_args(arguments)
    if chosen.part is not None:
        return _part(chosen.part, chosen)
    found: dict[str, Any] = json.loads(chosen.json.read_text()) if chosen.json.exists() else {}
    ends = time.monotonic() + chosen.seconds
    parts: list[str] = list(chosen.parts or PARTS)
    for place, part in enumerate(parts, start=1):
        left = ends - time.monotonic()
        if (reason := _why_not(part, found, chosen)) is not None:
            print(f"{part}: {reason}", flush=True)
        elif left < _LEAST_SECONDS:
            print(f"{part}: no time left", flush=True)
        else:
            wait = any(_why_not(other, found, chosen) is None for other in parts[place:])
            own = max(_LEAST_SECONDS, left * LARGEST_SHARE) if wait else left
            found[part] = _of_its_own(part, arguments, own)
            _write(chosen.json, found)
            print(
                f"{part}: {found[part].get('failed') or 'done'}, {left:.0f} s were left", flush=True
            )
    return found


def _why_not(part: str, found: Mapping[str, Any], chosen: argparse.Namespace) -> str | None:
    """Why a part is not run; None where it is."""
    before = found.get(part, {})
    if "figures" in before and before.get("asked") == _asked(part, chosen):
        return "done before"
    if part == WHOLE and (chosen.model is None or chosen.rows is None):
        return "left out, it needs --model and --rows"
    return None


def _asked(part: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """What a part's figures depend on; those of a smaller trial, or another device, are others."""
    own = _OF_STEPS if part in STEPS else _OF_WHOLE if part == WHOLE else ()
    names = (*_OF_ALL, *own)
    return {name: _plain(v) for name in names if (v := getattr(chosen, name)) not in (None, False)}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _command(part: str, chosen: argparse.Namespace) -> str:
    """The command that gives a part's figures again."""
    words = ["python", "-m", "jobs.gpu", "--parts", part]
    for name, value in _asked(part, chosen).items():
        values = value if isinstance(value, list) else [] if value is True else [value]
        words += ["--" + name.replace("_", "-"), *map(str, values)]
    return shlex.join(words)


def _of_its_own(part: str, arguments: Sequence[str], seconds: float) -> dict[str, Any]:
    """Run a part in a process, at most so long; its figures, or why there are none."""
    command = [sys.executable, "-m", "jobs.gpu", *arguments, "--part", part]
    began = time.monotonic()
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        said = error.stderr or b""  # bytes, whatever was asked for
        measured = said if isinstance(said, str) else said.decode(errors="replace")
        return {
            "failed": f"ended after {seconds:.0f} s, its time",
            "measured": [line for line in measured.splitlines() if line.startswith(_MEASURED)],
        }
    taken = {"wall_seconds": time.monotonic() - began}
    if ended.returncode:
        return {"failed": "\n".join(ended.stderr.strip().splitlines()[-15:]), **taken}
    return json.loads(ended.stdout.strip().splitlines()[-1]) | taken


def _part(part: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """The figures of a part, with the machine's description."""
    said = logging.StreamHandler()
    said.setFormatter(logging.Formatter(f"{_MEASURED}%(message)s"))
    ours = logging.getLogger("tests.benchmarks")
    ours.addHandler(said)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    reset_peak_memory(device)
    if part in STEPS:
        figures = _steps(STEPS[part], chosen, device)
    elif part == AGREEMENT:
        figures = device_agreement(device)
        figures["peak_gb"] = memory(device)[1] * 1e-9
    elif part == WHOLE:
        sizes = {"n_batches": chosen.batches} if chosen.batches else {}
        if chosen.trajectories:
            sizes |= {"trajectories": chosen.trajectories, "trajectory_batches": 2}
        figures = run_whole_job(chosen.model, tuple(chosen.rows), device, **sizes)
    else:
        raise ValueError(f"no part {part!r}; there are: {', '.join(PARTS)}")
    return {
        "figures": figures,
        "machine": describe(device),
        "asked": _asked(part, chosen),
        "command": _command(part, chosen),
    }


def _steps(part: Steps, chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    setting = choose(
        part.preset,
        Choices(
            edits=chosen.edits or part.edits,
            token_budget=part.token_budget,
            memory=True,
            layers=chosen.layers,
            repeats=chosen.repeats,
            reference=not chosen.without_reference,
            profile=True,
        ),
    )
    clock: ClockKind = "wall"
    return RUNNERS[type(setting)](setting, device, clock)


def _write(path: Path, found: Mapping[str, Any]) -> None:
    """Write the file whole, or leave the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(found, indent=2) + "\n")
    os.replace(part, path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.gpu",
        description="Time RLEdit, the reference implementation and the passes owed on one GPU.",
        epilog="Needs rledit and PyTorch alone. A second call goes on where the first one ended.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", default=Path("gpu.json"))
    parser.add_argument("--seconds", type=float, default=540, help="start and run no longer (540)")
    parser.add_argument("--parts", nargs="*", choices=PARTS, metavar="PART", help="only these")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M, for its whole job")
    parser.add_argument(
        "--rows", type=Path, nargs=2, metavar=("TRAIN", "EVALUATION"), help="files of edits for it"
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, default=4, help="CPU threads (4)")
    small = parser.add_argument_group("smaller, to see that it works")
    small.add_argument("--layers", type=int, help="cut the models to so many layers")
    small.add_argument("--edits", type=int, help="edits a batch")
    small.add_argument("--repeats", type=int, help="timed repeats of a step")
    small.add_argument("--without-reference", action="store_true")
    small.add_argument("--batches", type=int, help="batches of the whole job's stream")
    small.add_argument("--trajectories", type=int, help="trajectories of two batches to train it")
    return parser
