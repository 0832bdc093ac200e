"""The benchmark's command line; needs nothing but the package and PyTorch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.machine import describe
from tests.benchmarks.presets import PRESETS, RUNNERS, Choices, choose


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Run a preset as the arguments say; writes the JSON file if one is named.

    Raises:
        ValueError: A choice does not apply to the preset.
    """
    chosen = _parser().parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    setting = choose(
        chosen.preset,
        Choices(
            repeats=chosen.repeats,
            layers=chosen.layers,
            edits=chosen.edits,
            reference=not chosen.without_reference,
            profile=chosen.profile,
            token_budget=chosen.token_budget,
            configurations=tuple(chosen.configurations),
            model=chosen.model,
            rows=None if chosen.rows is None else tuple(chosen.rows),
            train_batches=chosen.train_batches,
            stream_batches=chosen.stream_batches,
            pipeline=not chosen.without_pipeline,
        ),
    )
    result: dict[str, Any] = {
        "preset": chosen.preset,
        "command": " ".join(["python -m jobs.benchmark", *arguments]),
        "clock": chosen.clock,
        "machine": describe(device),
        "setting": {key: str(value) for key, value in vars(setting).items()},
    }
    result |= RUNNERS[type(setting)](setting, device, chosen.clock)
    if chosen.json is not None:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(result, indent=2) + "\n")
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.benchmark",
        description="Time the fast path against the dense reference and the bare passes owed.",
    )
    parser.add_argument("--preset", required=True, choices=PRESETS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--repeats", type=int, metavar="N", help="timed repeats of each step")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="CPU threads (2)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--layers", type=int, metavar="N", help="cut the model to N layers")
    parser.add_argument(
        "--edits", type=int, metavar="N", help="edits per batch, or of the stream (growth, scoring)"
    )
    parser.add_argument("--token-budget", type=int, metavar="N", help="padded tokens of a batch")
    parser.add_argument("--configurations", nargs="*", default=[], metavar="NAME")
    parser.add_argument(
        "--without-reference", action="store_true", help="leave the reference implementation out"
    )
    parser.add_argument("--profile", action="store_true", help="add profiles of our steps")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu counts processor time: for shared machines, together with --threads 1",
    )
    job = parser.add_argument_group("release-shaped")
    job.add_argument("--model", type=Path, metavar="FOLDER", help="SmolLM2-135M (default: cached)")
    job.add_argument(
        "--rows", type=Path, nargs=2, metavar=("TRAIN", "EVALUATION"), help="files of edits"
    )
    job.add_argument("--train-batches", type=int, metavar="N", help="batches of the trajectory")
    job.add_argument("--stream-batches", type=int, metavar="N", help="batches of the stream")
    job.add_argument("--without-pipeline", action="store_true", help="the library alone")
    return parser
