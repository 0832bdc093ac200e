"""The programme for a GPU, at very small sizes on the CPU: parts, resuming, failures."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from tests.benchmarks import accounting, gpu, machine, profiles, steps
from tests.benchmarks.agreement import device_agreement
from tests.benchmarks.clock import Clock
from tests.benchmarks.contenders import Contender
from tests.benchmarks.models import ModelShape
from tests.benchmarks.presets import PRESETS
from tests.benchmarks.steps import StepBenchmark
from tests.benchmarks.whole_job import run_whole_job
from tests.unit.helpers.text_edits import random_edits, tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model

CPU = torch.device("cpu")


def rows(path: Path, n: int, seed: int) -> Path:
    """A file of edits in ZsRE's schema."""
    edits = random_edits(n, seed=seed)
    found = [
        {
            "src": f"{edit.prompt} {seed} {i}",
            "ans": edit.target,
            "rephrase": edit.rephrases[0],
            "loc": edit.locality[0].prompt,
            "loc_ans": edit.locality[0].answer,
            "subject": f"s{seed} {i}",
        }
        for i, edit in enumerate(edits)
    ]
    path.write_text(json.dumps(found))
    return path


def test_a_whole_job_trains_edits_and_scores(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer("llama").save_pretrained(folder)
    found = run_whole_job(
        folder,
        (rows(tmp_path / "train.json", 40, 1), rows(tmp_path / "evaluation.json", 24, 2)),
        CPU,
        n_batches=8,
        batch_size=2,
        trajectories=1,
        trajectory_batches=2,
        scored=8,
        modules=("down:2-3",),
    )
    assert set(found["seconds"]) == {"load", "train", "references", "edit", "score"}
    assert all(value > 0 for value in found["seconds"].values()) and found["peak_gb"] > 0
    assert list(found["scores"]) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert found["scores"][0]["specificity_self"] == 100
    assert len(found["edit_seconds_by_part"]) == 8 and found["validations"]


@pytest.mark.long
def test_a_device_agrees_with_itself() -> None:
    found = device_agreement(CPU)
    assert found["torch.float32"]["shift"] == found["torch.bfloat16"]["shift"] == 0
    assert found["rounding"] > 0
    assert all(found[f"torch.{kind}"]["within"] == 1 for kind in ("float32", "bfloat16"))
    assert found["torch.bfloat16"]["tolerance"] > found["torch.float32"]["tolerance"]


def test_parts_are_those_of_the_presets_and_the_most_telling_stands_first() -> None:
    assert {timed.preset for timed in gpu.STEPS.values()} <= set(PRESETS)
    assert gpu.PARTS[0] == "llama3-8b, 20 edits" and len(set(gpu.PARTS)) == len(gpu.PARTS) == 6


def test_what_is_done_is_kept_and_what_failed_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    answers: dict[str, dict[str, Any]] = {"gpt-j-6b, 20 edits": {"failed": "out of memory"}}

    def run(part: str, _: Any, seconds: float) -> dict[str, Any]:
        asked.append(part)
        assert 0 < seconds <= 540
        return answers.get(part, {"figures": {"train_ratio": 5.0}, "asked": {"threads": 4}})

    monkeypatch.setattr(gpu, "_of_its_own", run)
    path = tmp_path / "gpu.json"
    first = gpu.main(["--json", str(path)])
    assert asked == [part for part in gpu.PARTS if part != gpu.WHOLE]
    assert first == json.loads(path.read_text())
    answers.clear()
    gpu.main(["--json", str(path)])
    assert asked[5:] == ["gpt-j-6b, 20 edits"]
    assert "left out, it needs --model and --rows" in capsys.readouterr().out
    assert all("figures" in found for found in json.loads(path.read_text()).values())


def test_figures_of_a_trial_are_not_taken_for_those_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part's command is the one that gives its figures again."""
    begun: list[str] = []

    def run(part: str, arguments: Any, _: float) -> dict[str, Any]:
        begun.append(part)
        chosen = gpu._parser().parse_args(arguments)
        return {
            "figures": {},
            "asked": gpu._asked(part, chosen),
            "command": gpu._command(part, chosen),
        }

    monkeypatch.setattr(gpu, "_of_its_own", run)
    path, first = tmp_path / "gpu.json", gpu.PARTS[0]
    kept = ["--json", str(path)]
    small = ["--layers", "2", "--without-reference", "--device", "cpu"]
    job = ["--model", "a folder", "--rows", "t.json", "e.json"]
    found = gpu.main([*kept, *small, "--parts", first])
    words = shlex.split(found[first]["command"])
    again = gpu._parser().parse_args(words[3:])
    assert words[:3] == ["python", "-m", "jobs.gpu"] and again.parts == [first]
    assert gpu._asked(first, again) == found[first]["asked"]
    gpu.main([*kept, *small, "--parts", first])
    gpu.main([*kept, "--parts", first])
    gpu.main([*kept, *job, "--parts", first, gpu.WHOLE])
    assert begun == [first, first, gpu.WHOLE]
    command = json.loads(path.read_text())[gpu.WHOLE]["command"]
    assert command.endswith("--model 'a folder' --rows t.json e.json")


@pytest.mark.long
def test_a_part_that_fails_says_why_and_one_without_time_is_not_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gpu.json"
    missing = ["--model", str(tmp_path / "no"), "--rows", "a", "b", "--parts", gpu.WHOLE]
    found = gpu.main(["--json", str(path), "--device", "cpu", *missing])
    assert str(tmp_path / "no") in found[gpu.WHOLE]["failed"]
    assert gpu.main(["--json", str(path), "--seconds", "1", "--parts", gpu.AGREEMENT]) == found
    assert f"{gpu.AGREEMENT}: no time left" in capsys.readouterr().out


def test_what_a_part_had_measured_when_its_time_was_over_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no figure: the part is run again."""
    asked: list[str] = []

    def run(command: list[str], *, timeout: float, **_: Any) -> None:
        asked.append(command[-1])
        said = b"Loading weights\nmeasured ours, warm-up: 2 s\nmeasured ours, repeat 1 of 5: 1 s\n"
        raise subprocess.TimeoutExpired(command, timeout, stderr=said)

    monkeypatch.setattr(gpu.subprocess, "run", run)
    path = tmp_path / "gpu.json"
    for _ in range(2):
        found = gpu.main(["--json", str(path), "--parts", gpu.PARTS[0], "--seconds", "30"])
        assert found == json.loads(path.read_text())
    assert asked == [gpu.PARTS[0]] * 2
    assert found[gpu.PARTS[0]]["measured"] == [
        "measured ours, warm-up: 2 s",
        "measured ours, repeat 1 of 5: 1 s",
    ]


def test_a_part_says_every_time_when_it_is_taken() -> None:
    code = (
        "import torch; from tests.benchmarks import gpu, clock\n"
        "def timed(_, __, device):\n"
        "    clock.interleave({'ours': lambda i: lambda: None}, 2, clock.Clock(device))\n"
        "gpu._steps = timed; gpu.main(['--device', 'cpu', '--part', gpu.PARTS[0]])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = [line for line in found.stderr.splitlines() if line.startswith(gpu._MEASURED)]
    assert [line[: line.index(":")] for line in said] == [
        "measured ours, warm-up",
        "measured ours, repeat 1 of 2",
        "measured ours, repeat 2 of 2",
    ]


def test_parts_behind_another_keep_half_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def run(_: str, __: Any, seconds: float) -> dict[str, Any]:
        given.append(seconds)
        return {"failed": "ended"}

    monkeypatch.setattr(gpu, "_of_its_own", run)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: sum(given))  # each takes all it is given
    whole = ["--model", "m", "--rows", "a", "b"]
    gpu.main(["--json", str(tmp_path / "gpu.json"), *whole])
    assert given == [270, 135, 67.5, 33.75, 20]  # none is begun that could not be loaded
    given.clear()
    gpu.main(["--json", str(tmp_path / "one.json"), "--parts", gpu.PARTS[-1]])
    assert given == [540]


def test_steps_of_real_shapes_keep_prefixes_on_the_card() -> None:
    for timed in gpu.STEPS.values():
        setting = PRESETS[timed.preset]
        assert isinstance(setting, StepBenchmark) and setting.execution.cache_on_device


def test_memory_of_our_steps_is_without_the_other_contenders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside it, the peak of all, and what of it prefixes take."""
    there: list[list[str]] = []
    made: list[weakref.ref[Any]] = []
    begun = Contender.__init__

    def begin(self: Contender, *arguments: Any) -> None:
        begun(self, *arguments)
        made.append(weakref.ref(self))

    def reset(_: torch.device) -> None:
        there.append([one.name for ref in made if (one := ref()) is not None])

    monkeypatch.setattr(Contender, "__init__", begin)
    monkeypatch.setattr(steps, "reset_peak_memory", reset)
    monkeypatch.setattr(steps, "memory", lambda _: (2_000_000_000, 3_000_000_000))
    shape = ModelShape(
        family="llama", hidden=16, inner=24, layers=4, heads=2, kv_heads=1, vocabulary=40
    )
    setting = StepBenchmark(
        shape=shape, configurations={"zsre": ("down:2-3",)}, rank=3, batch_size=2, depth=2,
        repeats=1, account=False, memory=True,
    )  # fmt: skip
    found = steps.run_steps(setting, CPU, "wall")["configurations"]["zsre"]["memory_gb"]
    assert there == [["ours"], ["ours"]]
    peaks = {"peak_of_all_contenders", "edit_peak", "train_peak"}
    assert set(found) == {*peaks, "held", "prefixes", "planned"}
    assert 1 < found["planned"] < 1.001  # the runtime's GB, as the model is tiny
    assert found["held"] == 2 and found["train_peak"] == found["edit_peak"] == 3
    assert 0 < found["prefixes"] < 1e-3


class Recorded:
    """What a profiler has of a product on a card: the operation, and its kernel by itself."""

    def __enter__(self) -> Recorded:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def key_averages(self) -> list[SimpleNamespace]:
        operation, kernel = (
            SimpleNamespace(
                key=key, count=1, device_type=kind, self_device_time_total=2e6,
                self_cpu_time_total=1e6,
            )
            for key, kind in (("aten::mm", DeviceType.CPU), ("gemm", DeviceType.CUDA))
        )  # fmt: skip
        return [operation, kernel]


def test_kernels_are_counted_once_with_the_operations_that_launch_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(profiles, "profile", lambda **_: Recorded())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    rows = profiles.top_operations(lambda: None, torch.device("cuda"))
    assert [(row["operation"], row["seconds"]) for row in rows[:-1]] == [
        ("aten::mm", 2.0),
        ("(all other operations)", 0),
    ]


def test_work_on_the_cpu_is_profiled_there_beside_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    rows = profiles.top_operations(lambda: torch.ones(64, 64) @ torch.ones(64, 64), CPU)
    assert sum(row["seconds"] for row in rows if row["operation"] == "aten::mm") > 0


def test_peaks_of_a_card_with_a_number_begin_once_cuda_has(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(torch.cuda, "init", lambda: called.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda d: called.append(str(d)))
    machine.reset_peak_memory(torch.device("cuda:0"))
    assert called == ["init", "cuda:0"]


def test_what_takes_the_place_in_a_cache_lies_on_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    devices: list[Any] = []
    zeros = torch.zeros

    def make(*size: Any, device: Any = None, **more: Any) -> torch.Tensor:
        devices.append(device)
        return zeros(*size, device=device, **more)

    monkeypatch.setattr(accounting.torch, "zeros", make)
    monkeypatch.setattr(accounting, "_EVICTION_BYTES", 64)
    there = torch.device("meta")
    accounting.account(lambda: torch.ones(4, 4) @ torch.ones(4, 4), Clock(there))
    assert devices == [there]
