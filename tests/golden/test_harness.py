"""The harness must accept an honest set, and catch every way in which one can be wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from .judge import Judge
from .ledger import relative_error
from .made import N_STEPS, RUNS, make_set, write_file
from .sets import GoldenSet, find_sets, integrity, kind_of
from .tolerances import GRADIENT, uncertainty

# They judge the judge: what a developer runs all day is the judge itself.
pytestmark = pytest.mark.long

SHAPES = ("(16, 24)", "(24, 16)")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> GoldenSet:
    """A set with two linear shapes, made by our own editors."""
    torch.set_num_threads(1)
    return make_set(tmp_path_factory.mktemp("made"))


@pytest.fixture
def doctored(made: GoldenSet, tmp_path: Path) -> Callable[..., Judge]:
    """Copies the made set, changes one file or the manifest, and hands it to a judge."""

    def change(
        file: str | None = None,
        tensors: Callable[[dict[str, Tensor]], object] = lambda t: None,
        manifest: Callable[[dict[str, Any]], object] = lambda m: None,
        relist: bool = True,
    ) -> Judge:
        root = tmp_path / "doctored"
        shutil.copytree(made.root, root)
        content = json.loads((root / "manifest.json").read_text())
        if file is not None:
            loaded = made.load(file)
            tensors(loaded)
            listed = content["files"][file]
            write_file(root, content, file, loaded)
            if not relist:
                content["files"][file] = listed
        manifest(content)
        (root / "manifest.json").write_text(json.dumps(content))
        return Judge(GoldenSet(root, "hypernet"))

    return change


def test_honest_set_passes(made: GoldenSet) -> None:
    judge = Judge(made)
    assert judge.parts == [*RUNS, "small/rms"]
    assert [failure for part in judge.parts for failure in judge.failures(part)] == []
    assert judge.coverage() == []


def test_two_shapes_are_clipped_together(made: GoldenSet) -> None:
    recorded = made.load("one.safetensors")
    for step in range(N_STEPS):
        before, after = (
            {n: t for n, t in recorded.items() if n.startswith(f"train/step{step}/{kind}/")}
            for kind in ("net_grad_preclip", "net_grad_postclip")
        )
        assert {shape for shape in SHAPES if any(shape in n for n in before)} == set(SHAPES)
        norm = torch.stack([t.double().square().sum() for t in before.values()]).sum().sqrt()
        limit = RUNS["one"]["editor"]["max_grad_norm"]
        assert norm > limit
        for name, value in before.items():
            clipped = after[name.replace("preclip", "postclip")]
            torch.testing.assert_close(clipped, value * float(limit / (norm + 1e-6)))


def test_perturbed_tensors_fail(doctored: Callable[..., Judge]) -> None:
    names = (
        "train/step1/keys/model.layers.2.mlp.down_proj",
        "train/step2/normalizer/(24, 16)/var",
        "train/step2/net_grad_preclip/(24, 16).lamda.weight",
        "train/step1/weight_grad/model.layers.1.mlp.gate_proj",
        "train/final/net/(16, 24).blocks.2.bias",
        "valid/step2/param_shift/model.layers.1.mlp.up_proj",
        "valid/final/weight/model.layers.2.mlp.gate_proj",
        "valid/final/succ/equiv_tuples",
    )

    def perturb(tensors: dict[str, Tensor]) -> None:
        for name in names:
            tensors[name][-1] += 0.1 * float(tensors[name].abs().max()) + 1e-4

    failures = doctored("one.safetensors", perturb).failures("one")
    assert [name for name in names if not any(name in failure for failure in failures)] == []
    # The recorded final network no longer follows from the recorded gradient either.
    assert any("Adam on the recorded gradient" in failure for failure in failures)
    assert all(any(name in failure for name in names) for failure in failures)


def test_perturbed_number_fails(doctored: Callable[..., Judge]) -> None:
    def perturb(manifest: dict[str, Any]) -> None:
        manifest["runs"]["two"]["losses"][1]["equiv_ce"][0] *= 1.001
        manifest["runs"]["two"]["metrics"]["GS"] += 0.01

    failures = doctored(manifest=perturb).failures("two")
    assert [f.split(": ")[1] for f in failures] == ["losses/1/equiv_ce", "metrics/GS"]


def test_extra_tensor_fails(doctored: Callable[..., Judge]) -> None:
    name = "train/step0/something_new/model.layers.1.mlp.up_proj"
    judge = doctored("three.safetensors", lambda t: t.update({name: torch.zeros(2)}))
    assert [failure.split(": ")[1] for failure in judge.failures("three")] == [name]
    left = [value for value in judge.ledger.left_over() if value.startswith("three.")]
    assert left == [f"three.safetensors: {name}"]


def test_files_must_match_the_manifest(doctored: Callable[..., Judge]) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["extra"] = torch.zeros(2)
        tensors["valid/final/succ/edit_tuples"] = torch.zeros(2)
        del tensors["valid/final/succ/equiv_tuples"]

    golden = doctored("four.safetensors", add, relist=False).golden
    (golden.root / "three.safetensors").unlink()
    (golden.root / "more.safetensors").touch()
    problems = [problem.partition(": ") for problem in integrity(golden)]
    assert {(where, what[:20]) for where, _, what in problems} == {
        ("four.safetensors:extra", "in the file, not in "),
        ("four.safetensors:valid/final/succ/edit_tuples", "[[2], 'F32'] on disk"),
        ("four.safetensors:valid/final/succ/equiv_tuples", "only in the manifest"),
        ("three.safetensors", "listed in the manife"),
        ("more.safetensors", "on disk, not in the "),
    }


def test_extra_unit_and_number_fail(doctored: Callable[..., Judge]) -> None:
    judge = doctored(
        "small.safetensors",
        lambda t: t.update({"novel/out": torch.zeros(2)}),
        manifest=lambda m: m["runs"]["small"].update(novel_number=3.0),
    )
    assert judge.failures("small/rms") == []
    assert "novel" in judge.failures("small/novel")[0]
    left = [value for value in judge.ledger.left_over() if "small" in value]
    assert left == ["runs/small: novel_number", "small.safetensors: novel/out"]


@pytest.mark.parametrize(
    "entry",
    [{}, {"note": 1}, {"settings": {"editor": {"name": "novel"}, "set": {"batch": 3}}}],
    ids=["empty", "no settings", "unknown editor"],
)
def test_unknown_run_fails(doctored: Callable[..., Judge], entry: dict[str, Any]) -> None:
    judge = doctored(manifest=lambda m: m["runs"].update(novel=entry))
    assert judge.failures("novel")


def test_unknown_setting_fails(doctored: Callable[..., Judge]) -> None:
    def add(manifest: dict[str, Any]) -> None:
        manifest["runs"]["four"]["settings"]["editor"]["temperature"] = 2.0

    assert "temperature" in doctored(manifest=add).failures("four")[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("back_depth", 1), ("time_decay", 0.8), ("loc_coef", 0.5), ("max_grad_norm", 0.5)],
)
def test_settings_matter(doctored: Callable[..., Judge], key: str, value: float) -> None:
    judge = doctored(manifest=lambda m: m["runs"]["one"]["settings"]["editor"].update({key: value}))
    assert any("net_grad" in failure for failure in judge.failures("one"))


def test_module_order_matters(doctored: Callable[..., Judge]) -> None:
    judge = doctored(manifest=lambda m: m["runs"]["one"]["settings"]["modules"].reverse())
    assert any("param_shift" in failure for failure in judge.failures("one"))


def test_kinds_are_detected(made: GoldenSet, tmp_path: Path) -> None:
    (tmp_path / "parent" / "child").mkdir(parents=True)
    shutil.copy(made.root / "manifest.json", tmp_path / "parent" / "child")
    assert [(s.root.name, s.kind) for s in find_sets(tmp_path)] == [("child", "hypernet")]
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"families": {}, "tensor_meaning": {}}))
    assert kind_of(manifest) == "locate"
    manifest.write_text(json.dumps({"numbers": []}))
    with pytest.raises(ValueError, match="no known kind"):
        kind_of(manifest)
    with pytest.raises(ValueError, match="no golden set"):
        find_sets(made.root / "nowhere")


def test_a_float32_solve_is_as_uncertain_as_its_conditioning() -> None:
    """The release's two gradients of one solve, float32 against float64."""
    generator = torch.Generator().manual_seed(0)
    keys = 3 * torch.randn(12, 48, generator=generator, dtype=torch.float64)
    gradient = torch.randn(48, 20, generator=generator, dtype=torch.float64)
    differences = torch.randn(12, 20, generator=generator, dtype=torch.float64)

    def gradients(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        k, g, d = (t.to(dtype) for t in (keys, gradient, differences))
        system = k.T @ k + torch.eye(48, dtype=dtype)
        solved, shift = torch.linalg.solve(system, g), torch.linalg.solve(system, k.T @ d)
        return -(solved * shift).sum(), k @ solved

    condition = float(torch.linalg.matrix_norm(keys, 2)) ** 2 + 1
    pairs = zip(gradients(torch.float32), gradients(torch.float64), strict=True)
    ridge, values = (relative_error(found, true) for found, true in pairs)
    assert values <= uncertainty(GRADIENT, condition)
    # The ridge's is a sum that cancels: worse still, though this system is a mild one.
    assert condition < 1e3 and ridge > 10 * GRADIENT.limit


@pytest.mark.slow
def test_a_recording_that_is_uncertain_itself_is_held_to_its_conditioning(tmp_path: Path) -> None:
    """8e-3 off, as a float32 solve may be: accepted with large keys, refused with small ones."""
    name = "train/step2/net_grad_preclip/(24, 16).lamda.weight"

    def judged(scale: float, factor: float) -> list[str]:
        root = tmp_path / f"{scale}-{factor}"
        root.mkdir()
        golden = make_set(root, ["one"], key_scale=scale)
        tensors = golden.load("one.safetensors")
        tensors[name] *= factor
        manifest = json.loads((root / "manifest.json").read_text())
        write_file(root, manifest, "one.safetensors", tensors)
        return Judge(GoldenSet(root, "hypernet")).failures("one")

    assert judged(1.0, 1.008) == []
    for scale, factor in ((1.0, 1.05), (0.01, 1.008)):
        failures = judged(scale, factor)
        assert failures and all(name in failure for failure in failures)
        assert "off the float64 value" in failures[0]
