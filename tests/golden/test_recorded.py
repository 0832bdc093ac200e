"""The project's own recordings: small, complete in what they claim, and sharp enough to fail."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rledit.editors import alphaedit, rome
from rledit.editors.moment_editor import MomentEditor
from rledit.locate import spread
from rledit.locate.contexts import Contexts
from rledit.moments import RunningMoments

from . import choose
from .drawn import departures, drawn, sums
from .judge import Judge
from .ledger import Ledger
from .locate_judge import LocateJudge
from .sets import REAL_FILE, RECORDED, GoldenSet, integrity
from .tolerances import UNIT

PARTS = {
    "hypernet": {"rledit_llama", "malmen_llama", "mend_llama", "ultraedit_llama"}
    | {f"units/{group}" for group in ("rms", "net", "loss", "succ", "succ_old")},
    "locate": {f"gptj/{stem}" for stem in ("requests", *choose.LOCATE)},
}
Kind = Any


def judge_of(root: Path) -> Judge | LocateJudge:
    """A fresh judge of one of the two sets."""
    kind: Kind = root.name
    return (
        Judge(GoldenSet(root, kind)) if kind == "hypernet" else LocateJudge(GoldenSet(root, kind))
    )


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], Path]:
    """Copies a set to where it may be changed."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(RECORDED / kind, tmp_path / kind))

    return copy


def test_the_recordings_are_small_and_hold_what_is_claimed() -> None:
    assert sum(f.stat().st_size for f in RECORDED.rglob("*") if f.is_file()) < 2_000_000
    for kind, parts in PARTS.items():
        assert set(judge_of(RECORDED / kind).parts) == parts
        golden = judge_of(RECORDED / kind).golden
        floats = [load_file(path) for path in golden.root.rglob("*.safetensors")]
        kinds = {t.dtype for tensors in floats for t in tensors.values()}
        assert kinds <= {torch.float32, torch.int64, torch.bool}


@pytest.mark.parametrize(
    ("kind", "file", "names"),
    [
        (
            "hypernet",
            "rledit_llama",
            (
                "train/step0/param_shift/model.layers.2.mlp.gate_proj",
                "train/step3/net_grad_preclip/(64, 160).blocks.0.A",
                "valid/final/weight/model.layers.4.mlp.up_proj",
            ),
        ),
        *(
            pytest.param("hypernet", file, (name,), marks=pytest.mark.long)
            for file, name in (
                ("malmen_llama", "train/step3/net_after_step/(64, 160).blocks.1.A"),
                ("mend_llama", "train/step1/values_grad/model.layers.3.mlp.up_proj"),
            )
        ),
        ("hypernet", "ultraedit_llama", ("valid/step3/keys/model.layers.2.mlp.gate_proj",)),
        ("locate", "gptj/stats", ("mom2.l1", "P")),
        ("locate", "gptj/memit_single", ("b0.l2.upd",)),
        *(
            pytest.param("locate", file, names, marks=pytest.mark.long)
            for file, names in (
                ("gptj/alphaedit", ("final.cache_c", "b2.l1.upd")),
                ("gptj/rome", ("e3.W_after",)),
                ("gptj/ft_plain", ("final.transformer.h.2.mlp.fc_out.weight",)),
            )
        ),
    ],
)
def test_doctored_samples_fail(
    copied: Callable[[str], Path], kind: str, file: str, names: tuple[str, ...]
) -> None:
    root = copied(kind)
    path = root / f"{file}.safetensors"
    tensors = load_file(path)
    judge = judge_of(root)
    for name in names:
        assert judge.golden.is_sampled(path.relative_to(root).as_posix(), name)
        tensors[name][-1] += 0.05 * float(tensors[name].norm())
    save_file(tensors, path)
    failures = judge.failures(file)
    assert all(any(name in failure for failure in failures) for name in names)
    assert all(any(name in failure for name in names) for failure in failures)


@pytest.mark.long
def test_settings_matter(copied: Callable[[str], Path]) -> None:
    root = copied("hypernet")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["runs"]["rledit_llama"]["settings"]["editor"]["back_depth"] = 2
    (root / "manifest.json").write_text(json.dumps(manifest))
    assert any("net_grad" in failure for failure in judge_of(root).failures("rledit_llama"))


def _exact_moments(patch: pytest.MonkeyPatch) -> None:
    update = RunningMoments.update

    def exact(self: RunningMoments, rows: Tensor) -> None:
        self.formula = "exact"
        update(self, rows)

    patch.setattr(RunningMoments, "update", exact)


def _pooled_moments(patch: pytest.MonkeyPatch) -> None:
    def pooled(self: MomentEditor, captured: Any) -> None:
        for shape, names in self.shapes.items():
            rows = [torch.cat([captured.keys[n], captured.values[n]], -1) for n in names]
            self.moments[shape].update(torch.cat(rows))

    patch.setattr(MomentEditor, "_update_moments", pooled)


def _uniform_contexts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Contexts, "weights", lambda self, _: torch.full((len(self),), 1.0 / len(self)))


def _highest_layer_first(patch: pytest.MonkeyPatch) -> None:
    in_order = spread.in_order
    patch.setattr(spread, "in_order", lambda model: in_order(model)[::-1])


def _no_past_keys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(alphaedit.AlphaEdit, "after", lambda *_: {})


def _no_second_moment(patch: pytest.MonkeyPatch) -> None:
    factorise = rome.factorise
    patch.setattr(
        rome, "factorise", lambda moment, name: factorise(torch.eye(len(moment)).double(), name)
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "kind", "parts"),
    [
        (_exact_moments, "hypernet", ["units/rms", "ultraedit_llama"]),
        (_pooled_moments, "hypernet", ["rledit_llama", "ultraedit_llama"]),
        (_uniform_contexts, "locate", ["gptj/memit_single", "gptj/alphaedit"]),
        (_highest_layer_first, "locate", ["gptj/memit_single", "gptj/alphaedit"]),
        (_no_past_keys, "locate", ["gptj/alphaedit"]),
        (_no_second_moment, "locate", ["gptj/rome"]),
    ],
)
def test_code_that_departs_fails(
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
    kind: str,
    parts: list[str],
) -> None:
    change(monkeypatch)
    judge = judge_of(RECORDED / kind)
    for part in parts:
        failures = judge.failures(part)
        assert any("error" in f and " > " in f for f in failures), (part, failures[:3])


@pytest.mark.parametrize("kind", ["hypernet", "locate"])
def test_a_model_drawn_otherwise_is_named(copied: Callable[[str], Path], kind: str) -> None:
    root = copied(kind)
    path = root / "manifest.json"
    assert integrity(GoldenSet(root, judge_of(root).golden.kind)) == []
    manifest = json.loads(path.read_text())
    entry = manifest["files"]["lm_llama.safetensors"] if kind == "hypernet" else None
    entry = entry or manifest["families"]["gptj"]
    entry["drawn"]["seed"] += 1
    path.write_text(json.dumps(manifest))
    problems = integrity(judge_of(root).golden)
    assert len(problems) == len(entry["drawn"]["sums"])
    assert all("than the recorded model has" in problem for problem in problems)


def test_draws_follow_their_entry() -> None:
    entry: dict[str, Any] = {
        "seed": 3,
        "draws": [
            [None, [32], 1.0, 1, 0.0],
            ["a", [2, 16], 1.5, 16, 0.0],
            ["b", [16], 0.1, 1, 1.0],
        ],
    }
    generator = torch.Generator().manual_seed(3)
    torch.randn(32, generator=generator)
    found = drawn(entry)
    assert torch.equal(found["a"], torch.randn(2, 16, generator=generator) * 1.5 / 4)
    assert torch.equal(found["b"], torch.randn(16, generator=generator) * 0.1 + 1)
    entry["sums"] = {"a": sums(found["a"])}
    assert list(departures(entry)) == ["b: drawn, without a recorded sum"]


def test_a_sample_is_compared_with_the_same_entries(copied: Callable[[str], Path]) -> None:
    golden = judge_of(copied("locate")).golden
    file, name = "gptj/rome.safetensors", "e0.W_after"
    recorded = golden.load(file)[name]
    whole = torch.zeros(64, 160)
    whole.flatten()[:: choose.EVERY] = recorded
    ledger = Ledger(golden)
    ledger.check("same", file, name, whole, recorded, UNIT)
    ledger.check("turned", file, name, whole.T.contiguous(), recorded, UNIT)
    assert list(ledger.failures) == ["turned"]
    assert "shape [160, 64]" in ledger.failures["turned"][0]


def test_a_set_without_a_manifest_holds_whole_tensors(tmp_path: Path) -> None:
    given = {"final/a": torch.arange(6.0)}
    save_file(given, tmp_path / REAL_FILE)
    golden = GoldenSet(tmp_path, "real")
    assert torch.equal(golden.load(REAL_FILE)["final/a"], given["final/a"])
    ledger = Ledger(golden)
    ledger.check("part", REAL_FILE, "final/a", torch.arange(6.0), given["final/a"], UNIT)
    assert ledger.failures == {} and ledger.consumed == {(REAL_FILE, "final/a")}


def test_a_model_that_does_not_follow_from_its_seed_is_not_chosen() -> None:
    weights = {"a": torch.ones(16)}
    with pytest.raises(ValueError, match=r"seed 5, these differ .*\['a'\]"):
        choose._drawn_entry(5, [["a", [16], 1.0, 1, 0.0]], weights)


def test_the_choice_is_reproducible(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    given = pytestconfig.getoption("golden", default=None) or os.environ.get("RLEDIT_GOLDEN")
    if not given or not all((Path(given) / kind).is_dir() for kind in PARTS):
        pytest.skip("needs the full recordings of both kinds: --golden DIR or $RLEDIT_GOLDEN")
    choose.main(Path(given), tmp_path)
    files = {p.relative_to(RECORDED) for kind in PARTS for p in (RECORDED / kind).rglob("*.*")}
    assert files == {p.relative_to(tmp_path) for p in tmp_path.rglob("*.*")}
    for file in files:
        assert (tmp_path / file).read_bytes() == (RECORDED / file).read_bytes(), file
