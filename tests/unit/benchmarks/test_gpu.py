"""The programme for a GPU, at very small sizes on the CPU: parts, resuming, failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import gpu
from tests.benchmarks.agreement import device_agreement
from tests.benchmarks.presets import PRESETS
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
    assert {preset for preset, _ in gpu.STEPS.values()} <= set(PRESETS)
    assert gpu.PARTS[0] == "llama3-8b, 20 edits" and len(set(gpu.PARTS)) == len(gpu.PARTS) == 6


def test_what_is_done_is_kept_and_what_failed_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    answers: dict[str, dict[str, Any]] = {"gpt-j-6b, 20 edits": {"failed": "out of memory"}}

    def run(part: str, _: Any, seconds: float) -> dict[str, Any]:
        asked.append(part)
        assert 0 < seconds <= 540
        return answers.get(part, {"figures": {"train_ratio": 5.0}})

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
