"""The harness for locate sets must accept an honest set, and catch the ways it can be wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from .locate_judge import LocateJudge
from .made_locate import FAMILY, make_locate_set, save_manifest, write_tensors
from .sets import GoldenSet, integrity

# As in `test_harness`.
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> GoldenSet:
    """A set made by our own editors."""
    torch.set_num_threads(1)
    return make_locate_set(tmp_path_factory.mktemp("made"))


@pytest.fixture
def doctored(made: GoldenSet, tmp_path: Path) -> Callable[..., LocateJudge]:
    """Copies the made set, changes one file or the manifest, and hands it to a judge."""

    def change(
        stem: str | None = None,
        tensors: Callable[[dict[str, Tensor]], object] = lambda t: None,
        family: Callable[[dict[str, Any]], object] = lambda f: None,
    ) -> LocateJudge:
        root = tmp_path / "doctored"
        shutil.copytree(made.root, root)
        manifest = json.loads((root / "manifest.json").read_text())
        if stem is not None:
            loaded = made.load(f"{FAMILY}/{stem}.safetensors")
            tensors(loaded)
            write_tensors(root, manifest, stem, loaded)
        family(manifest["families"][FAMILY])
        save_manifest(root, manifest)
        return LocateJudge(GoldenSet(root, "locate"))

    return change


def test_honest_set_passes(made: GoldenSet) -> None:
    judge = LocateJudge(made)
    assert [failure for part in judge.parts for failure in judge.failures(part)] == []
    assert judge.coverage() == []


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("stats", "mom2.l3"),
        ("stats", "P"),
        ("stats", "inv_mom2.l2"),
        ("memit_single", "b0.z"),
        ("memit_single", "b0.z_delta_trace"),
        ("memit_single", "b0.z_losses"),
        ("memit_single", "b0.z_lookup_idxs"),
        ("memit_repeat", "b1.l3.upd"),
        ("memit_repeat", "b1.l1.K"),
        ("memit_seq", "final.cache_c"),
        ("memit_seq", "b0.l3.K_cached"),
        ("alphaedit", "b1.l3.upd"),
        ("alphaedit", "final.l1.W"),
        ("rect", "b1.l1.dW_applied"),
        ("prune", "paper_1.5.l3.W"),
        ("prune", "repo.l1.W"),
        ("prune", "l1.S_update"),
        ("rome", "e2.W_after"),
        ("rome", "e1.u"),
        ("rome_nomom2", "e0.v_right"),
        ("z_earlystop", "z_iters"),
        ("ft_plain", "losses"),
        ("ft_constr", "final.model.layers.2.mlp.down_proj.weight"),
    ],
)
def test_perturbed_tensor_fails(doctored: Callable[..., LocateJudge], stem: str, name: str) -> None:
    def perturb(tensors: dict[str, Tensor]) -> None:
        value = tensors[name]
        exact = not value.is_floating_point()
        tensors[name] = value + 1 if exact else value + 1e-3 * value.norm() / value.numel() ** 0.5

    failures = doctored(stem, perturb).failures(f"{FAMILY}/{stem}")
    assert any(name in failure for failure in failures)


@pytest.mark.parametrize(
    ("stem", "key", "setting", "value"),
    [
        ("memit_single", "MEMIT", "v_weight_decay", 0.3),
        ("memit_single", "MEMIT", "clamp_norm_factor", 0.2),
        ("memit_single", "MEMIT", "kl_factor", 2.0),
        ("memit_single", "MEMIT", "mom2_update_weight", 25.0),
        ("alphaedit", "AlphaEdit", "L2", 3.0),
        ("stats", "AlphaEdit", "nullspace_threshold", 1e-3),
        ("rome", "ROME", "mom2_adjustment", False),
        ("ft_plain", "FT_plain", "lr", 0.02),
        ("ft_plain", "FT_plain", "batch_size", 64),
        ("ft_constr", "FT_constr", "norm_constraint", 0.001),
    ],
)
def test_settings_matter(
    doctored: Callable[..., LocateJudge], stem: str, key: str, setting: str, value: Any
) -> None:
    judge = doctored(family=lambda f: f["hparams"][key].update({setting: value}))
    assert judge.failures(f"{FAMILY}/{stem}")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("fact_token", "last"), ("v_loss_layer", 3), ("mom2_adjustment", False)],
)
def test_settings_that_are_not_offered_fail(
    doctored: Callable[..., LocateJudge], setting: str, value: Any
) -> None:
    judge = doctored(family=lambda f: f["hparams"]["MEMIT"].update({setting: value}))
    assert "not offered" in judge.failures(f"{FAMILY}/memit_single")[0]


def test_contexts_matter(doctored: Callable[..., LocateJudge]) -> None:
    judge = doctored(family=lambda f: f["context_templates_memit"][1].reverse())
    assert judge.failures(f"{FAMILY}/requests")
    assert judge.failures(f"{FAMILY}/memit_single")


def test_unknown_values_fail(doctored: Callable[..., LocateJudge]) -> None:
    judge = doctored("rome", lambda t: t.update({"e0.novel": torch.zeros(2)}))
    assert "novel" in judge.failures(f"{FAMILY}/rome")[0]
    assert f"{FAMILY}/rome.safetensors: e0.novel" in judge.ledger.left_over()


def test_unknown_file_fails(made: GoldenSet, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made.root, root)
    manifest = json.loads((root / "manifest.json").read_text())
    write_tensors(root, manifest, "novel", {"b0.z": torch.zeros(2)})
    assert "no method" in LocateJudge(GoldenSet(root, "locate")).failures(f"{FAMILY}/novel")[0]


def test_unknown_setting_is_left_over(doctored: Callable[..., LocateJudge]) -> None:
    judge = doctored(family=lambda f: f["hparams"]["MEMIT"].update(novel=1))
    assert f"runs/{FAMILY}: hparams/MEMIT/novel" in judge.coverage()


def test_files_must_match_the_manifest(made: GoldenSet, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made.root, root)
    path = root / FAMILY / "rome.safetensors"
    path.write_bytes((root / FAMILY / "rect.safetensors").read_bytes())
    (root / FAMILY / "more.safetensors").touch()
    problems = integrity(GoldenSet(root, "locate"))
    assert any("SHA-256" in problem for problem in problems)
    assert f"{FAMILY}/more.safetensors: on disk, not in the manifest" in problems
