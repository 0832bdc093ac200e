"""Key covariance, null spaces and the systems of the methods, against plain algebra."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rledit.editors import editor_class
from rledit.editors.locate_editor import LocateEditor, SpreadEditor
from rledit.editors.prune import restrained
from rledit.editors.rect import largest_relative
from rledit.locate.covariance import (
    CovarianceError,
    CovarianceFingerprint,
    KeyCovariance,
    accumulate,
)
from rledit.locate.linear_systems import factorise, solve_with_keys
from rledit.locate.nullspace import null_space
from rledit.model import EditableModel, Execution
from tests.unit.helpers.text_edits import random_covariances, tiny_tokenizer
from tests.unit.helpers.tiny_models import VOCABULARY, tiny_model

IDENTITY = CovarianceFingerprint(model_hash="aaa", module="m", corpus_hash="ccc", dtype="float64")


def rows(n: int, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)).double()


def moment_of(parts: list[Tensor], identity: CovarianceFingerprint = IDENTITY) -> KeyCovariance:
    moment = KeyCovariance(identity, parts[0].shape[1])
    for part in parts:
        moment.update(part)
    return moment


def test_two_workers_merged_equal_one() -> None:
    parts = [rows(50, seed=s) for s in range(6)]
    one = moment_of(parts)
    two = moment_of(parts[::2])
    two.merge(moment_of(parts[1::2]))
    assert one.count == two.count == 300
    torch.testing.assert_close(one.mean(), two.mean(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(one.mean(), torch.cat(parts).T @ torch.cat(parts) / 300)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_interrupted_moment_goes_on_from_its_file(tmp_path: Path, dtype: str) -> None:
    identity = replace(IDENTITY, dtype=dtype)  # type: ignore[arg-type]
    parts = [rows(20, seed=s) for s in range(4)]
    straight = moment_of(parts, identity)
    begun = moment_of(parts[:2], identity)
    path = tmp_path / "moment.safetensors"
    save_file(begun.tensors(), path, begun.metadata())
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        resumed = KeyCovariance.load(tensors, file.metadata())
    for part in parts[2:]:
        resumed.update(part)
    assert torch.equal(straight.mean(), resumed.mean())
    assert resumed.identity == identity


@pytest.mark.parametrize(
    "change",
    [{"model_hash": "bbb"}, {"module": "n"}, {"corpus_hash": "ddd"}, {"dtype": "float32"}],
)
def test_a_moment_of_something_else_is_refused_naming_both(change: dict[str, str]) -> None:
    other = replace(IDENTITY, **change)  # type: ignore[arg-type]
    ((name, theirs),) = change.items()
    mine = getattr(IDENTITY, name)
    with pytest.raises(CovarianceError, match=f"{theirs}.*{mine}"):
        IDENTITY.require(other)
    with pytest.raises(CovarianceError):
        moment_of([rows(3)]).merge(moment_of([rows(3)], other))


def test_broken_files_are_refused() -> None:
    good = moment_of([rows(3)])
    with pytest.raises(CovarianceError, match="total"):
        KeyCovariance.load({"count": torch.tensor(1)}, good.metadata())
    with pytest.raises(CovarianceError, match="model_hash"):
        KeyCovariance.load(good.tensors(), {"count": "1"})
    with pytest.raises(CovarianceError, match="float32"):
        KeyCovariance.load(good.tensors(), good.metadata() | {"dtype": "float32"})
    with pytest.raises(CovarianceError, match="no token"):
        KeyCovariance(IDENTITY, 3).mean()
    with pytest.raises(CovarianceError, match="float16"):
        KeyCovariance(replace(IDENTITY, dtype="float16"), 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "gptj", "gemma2"])
def test_moments_are_those_of_whole_passes_and_of_any_cut(family: str) -> None:
    texts = [torch.randint(4, VOCABULARY, (n,)).tolist() for n in (5, 9, 1, 12)]

    def collected(budget: int) -> tuple[EditableModel, dict[str, KeyCovariance]]:
        execution = Execution(token_budget=budget)
        model = EditableModel(tiny_model(family), None, ["down:1,3"], execution)
        identities = {name: replace(IDENTITY, module=name) for name in model.modules}
        moments = {
            name: KeyCovariance(identity, model.linear(name).in_features)
            for name, identity in identities.items()
        }
        assert accumulate(model, texts, moments) == 27
        return model, moments

    model, whole = collected(1000)
    _, cut = collected(10)
    for name in model.modules:
        seen: list[Tensor] = []
        handle = model.linear(name).register_forward_hook(
            lambda _, args, __, seen=seen: seen.append(args[0][0])
        )
        for ids in texts:
            model.model(input_ids=torch.tensor([ids]))
        handle.remove()
        expected = torch.cat(seen).T @ torch.cat(seen) / 27
        torch.testing.assert_close(whole[name].mean(), expected, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(cut[name].mean(), expected, rtol=1e-5, atol=1e-7)


def test_the_null_space_is_strictly_under_the_threshold(caplog: pytest.LogCaptureFixture) -> None:
    basis, _ = torch.linalg.qr(rows(6))
    values = torch.tensor([0.0, 0.01, 0.02, 0.5, 1.0, 3.0]).double()
    moment = basis * values @ basis.T
    with caplog.at_level(logging.INFO):
        space = null_space(moment, 0.1, "layer 4")
    assert space.rank == 3
    assert "layer 4: null space of rank 3 of 6" in caplog.text
    torch.testing.assert_close(space.projection, basis[:, :3] @ basis[:, :3].T)
    with pytest.raises(ValueError, match="layer 4.*raise the threshold"):
        null_space(moment + torch.eye(6), 0.1, "layer 4")


def test_woodbury_equals_the_whole_system() -> None:
    system = rows(20).T @ rows(20)
    keys = rows(4, seed=1)
    expected = torch.linalg.solve(system + keys.T @ keys, keys.T)
    found = solve_with_keys(factorise(system, "m"), keys)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_singular_system_gets_jitter_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    few = rows(2)
    with caplog.at_level(logging.WARNING):
        factor = factorise(few.T @ few, "model.layers.3.mlp.down_proj")
    assert factor.jitter > 0
    assert "model.layers.3.mlp.down_proj: added jitter" in caplog.text
    assert bool(factor.solve(rows(6)).isfinite().all())


@pytest.mark.parametrize("system", [-torch.eye(3), torch.full((3, 3), float("nan"))])
def test_a_hopeless_system_names_the_layer(system: Tensor) -> None:
    with pytest.raises(ValueError, match="layer 7: the system of the update is singular"):
        factorise(system, "layer 7")


def editor_of(name: str, **settings: object) -> LocateEditor:
    model = EditableModel(tiny_model("llama").float(), tiny_tokenizer("llama"), ["down:1,3"])
    cls = editor_class(name)
    editor = cls(model, cls.Config(modules=("down:1,3",), **settings))
    assert isinstance(editor, LocateEditor)
    return editor


def test_memit_solves_the_published_system() -> None:
    editor = editor_of("memit", moment_weight=2.0, ridge=0.5)
    assert isinstance(editor, SpreadEditor)
    editor.load_covariance(random_covariances(editor.model))
    name = editor.modules[0]
    keys = rows(5, 24).float()
    k = keys.double()
    system = 2.0 * editor.covariances[name].double() + 0.5 * torch.eye(24).double() + k.T @ k
    expected = torch.linalg.solve(system, k.T).T
    torch.testing.assert_close(editor.solve(name, keys).left, expected, rtol=1e-6, atol=1e-9)


def test_alphaedit_solves_the_published_system() -> None:
    """The published system is not symmetric; ours is, with the same solution."""
    editor = editor_of("alphaedit", threshold=1.0, ridge=0.7)
    assert isinstance(editor, SpreadEditor)
    editor.load_covariance(random_covariances(editor.model))
    name = editor.modules[1]
    keys, earlier = rows(5, 24).float(), rows(7, 24, seed=1).float()
    past = earlier.T @ earlier
    state = editor.state_dict()
    editor.load_state_dict({k: past if k.endswith(name) else v for k, v in state.items()})
    found = editor.solve(name, keys).left
    projection = null_space(random_covariances(editor.model)[name].mean(), 1.0, name).projection
    p, k = projection.double(), keys.double()
    system = p @ (k.T @ k + past.double()) + 0.7 * torch.eye(24).double()
    expected = torch.linalg.solve(system, p @ k.T).T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_statistics_that_do_not_fit_are_refused() -> None:
    editor = editor_of("memit")
    moments = random_covariances(editor.model)
    with pytest.raises(CovarianceError, match="call load_covariance"):
        editor.moment(editor.modules[0])
    with pytest.raises(CovarianceError, match="no key covariance of 'model.layers.3"):
        editor.load_covariance({editor.modules[0]: moments[editor.modules[0]]})
    narrow = {name: moment_of([rows(3)]) for name in moments}
    with pytest.raises(CovarianceError, match="6 features, the linear has 24 inputs"):
        editor.load_covariance(narrow)
    with pytest.raises(ValueError, match="needs no key covariance"):
        model = editor.model
        ft = editor_class("ft")
        ft(model, ft.Config(modules=("down:1",))).load_covariance(moments)


@pytest.mark.parametrize("name", ["rome", "memit", "alphaedit"])
def test_linears_that_do_not_write_into_the_stream_are_refused(name: str) -> None:
    cls = editor_class(name)
    model = EditableModel(tiny_model("llama"), tiny_tokenizer("llama"), ["gate:1"])
    with pytest.raises(ValueError, match="use down:1"):
        cls(model, cls.Config(modules=("gate:1",)))


def test_rome_edits_one_linear_and_needs_moments_only_where_it_uses_them() -> None:
    with pytest.raises(ValueError, match="edits one linear, not 2"):
        editor_of("rome")
    cls = editor_class("rome")
    config = cls.Config(modules=("down:1",))
    assert "statistics" in cls.needs_of(config)
    assert "statistics" not in cls.needs_of(replace(config, second_moment=False))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
@pytest.mark.parametrize("base", [1.2, 2.718281828459045])
def test_the_restraint_is_that_of_the_decomposition(shape: tuple[int, int], base: float) -> None:
    update = rows(*shape)
    left, values, right = torch.linalg.svd(update, full_matrices=False)
    limit = float(values[2])
    logs = (values.log() - torch.tensor(limit).double().log()) / torch.tensor(base).double().log()
    expected = left * torch.where(values >= limit, logs + limit, values) @ right
    found, count = restrained(update, limit * (1 - 1e-12), base)
    assert count == 3
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    same, none = restrained(update, float(values[0]) * 2, base)
    assert none == 0
    assert torch.equal(same, update)


def test_the_largest_relative_changes_are_kept() -> None:
    change = torch.tensor([[1.0, -4.0, 0.5], [2.0, 0.1, -3.0]])
    weight = torch.tensor([[1.0, 2.0, 0.1], [-4.0, 1.0, 3.0]])
    # Relative: 1, 2, 5, 0.5, 0.1, 1; of six entries the third smallest is the threshold.
    mask = largest_relative(change, weight, 0.4)
    assert mask.tolist() == [[True, True, True], [False, False, True]]
    assert bool(largest_relative(change, weight, 1.0).all())
