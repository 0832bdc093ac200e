"""Locate-then-edit and fine-tuning editors beyond the common contract."""

from __future__ import annotations

import itertools
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from rledit.editors import Editor, editor_class
from rledit.editors.alphaedit import AlphaEdit
from rledit.editors.encore import ENCORE
from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.editors.locft import LocFT
from rledit.editors.nas import NAS
from rledit.editors.prune import PRUNE, singular_values
from rledit.editors.stableedit import StableEdit
from rledit.editors.whitening import RunningCovariance
from rledit.families import layer_index
from rledit.locate.keys import block_values
from rledit.model import EditableModel
from rledit.tokenization import EditBatch
from tests.unit.helpers.text_edits import equip, random_covariances, text_batches, tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model, two_shapes

NETWORK: dict[str, Any] = {"rank": 4, "n_blocks": 1, "initial_step": 1e-2, "meta_lr": 1e-2}
LOCATE: dict[str, Any] = {"value_steps": 6, "value_lr": 0.5, "clamp": 4.0, "value_decay": 0.01}


def make(
    name: str,
    modules: tuple[str, ...] = ("down:1,3",),
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Editor:
    model = EditableModel(tiny_model("llama").to(dtype), tiny_tokenizer("llama"), modules)
    cls = editor_class(name)
    editor = cls(model, cls.Config(modules=modules, **settings))
    equip(editor)
    return editor


def stream(editor: Editor, n: int = 3, size: int = 3) -> list[EditBatch]:
    return text_batches(editor.model, n, size, group_size=editor.group_size)


def edited(editor: Editor) -> dict[str, Tensor]:
    return editor.model.weights.state_dict()


def test_prune_restrains_what_memit_writes() -> None:
    """Bounded, and the next batch goes on from the unrestrained matrices."""
    # Not the last layer: there δ reaches few answers, and round-off decides what is written.
    modules = ("down:1,2",)
    memit = make("memit", modules, moment_weight=0.01, **LOCATE)
    pruned = make("prune", modules, moment_weight=0.01, log_base=2.0, **LOCATE)
    assert isinstance(pruned, PRUNE)
    cut = 0.0
    for batch in stream(memit, n=6):
        memit.edit(batch)
        cut += pruned.edit(batch)["restrained"]
    assert cut > 0
    for name, whole in edited(memit).items():
        assert torch.equal(pruned.state_dict()[f"unrestrained.{name}"], whole)
        original = memit.model.weights.original(name)
        before = singular_values(whole - original)[-1]
        after = singular_values(pruned.model.weights.read(name) - original)[-1]
        limit = singular_values(original)[-1]
        if before > limit:
            expected = (before / limit).log2() + limit
            torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
        else:
            torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["memit", "rect", "prune"])
def test_the_size_of_a_batchs_shift_is_that_of_what_is_written(name: str) -> None:
    """Of RECT without the entries that are cut, of PRUNE behind its restraint."""
    own = {"prune": {"log_base": 1.2}}.get(name, {})
    editor = make(name, ("down:1,2",), moment_weight=0.01, **own, **LOCATE)
    for batch in stream(editor):
        before = edited(editor)
        measured = editor.edit(batch)
        change = [value - before[module] for module, value in edited(editor).items()]
        norm = float(torch.stack([part.square().sum() for part in change]).sum().sqrt())
        assert measured["shift_norm"] == pytest.approx(norm, rel=1e-4)
        assert measured["realised_cosine"] == 1


def test_of_what_rect_writes_the_cosine_says_how_much_is_realised() -> None:
    small = LOCATE | {"clamp": 0.02, "moment_weight": 1.0}
    rect = make("rect", ("down:1",), torch.bfloat16, keep=0.1, **small)
    before = edited(rect)
    weights = rect.model.weights
    shown = {name: weights.parameter(name).float() for name in before}
    measured = rect.edit(stream(rect)[0])
    (name,) = before
    written = edited(rect)[name].float() - before[name].float()
    realised = weights.parameter(name).float() - shown[name]
    cosine = torch.nn.functional.cosine_similarity(written.flatten(), realised.flatten(), dim=0)
    assert measured["realised_cosine"] == pytest.approx(float(cosine), abs=1e-4)
    assert float(cosine) < 0.99999


def test_nas_anchors_targets_at_the_unedited_norm() -> None:
    editor = make("nas", threshold=1.0, ridge=1.0, **LOCATE)
    assert isinstance(editor, NAS)
    first, second, _ = stream(editor)
    requests = editor.requests(second)
    last = layer_index(editor.model.family, editor.modules[-1])
    anchors = block_values(editor.model, requests, last).norm(dim=-1)
    editor.edit(first)
    values = editor.values(requests)
    targets = editor.targets(requests, values)
    torch.testing.assert_close(targets.norm(dim=-1), anchors)
    cosine = torch.cosine_similarity(targets, values.targets)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_encore_stops_early_and_remembers_keys() -> None:
    editor = make("encore", moment_weight=1.0, **LOCATE)
    assert isinstance(editor, ENCORE)
    assert editor.config.value_config().stop_argmax == 2
    assert editor.past is not None
    batch = stream(editor)[0]
    editor.edit(batch)
    assert all(bool(total.any()) for total in editor.past.sums.values())


def test_past_keys_protect_earlier_edits() -> None:
    """With their keys remembered, later batches move earlier keys' outputs less."""
    moved: dict[bool, float] = {}
    for past_keys in (False, True):
        editor = make("memit", moment_weight=1e-3, past_keys=past_keys, **LOCATE)
        first, *rest = stream(editor, n=4)
        editor.edit(first)
        requests = editor.requests(first)  # type: ignore[attr-defined]
        before = block_values(editor.model, requests, 3)
        for batch in rest:
            editor.edit(batch)
        moved[past_keys] = float((block_values(editor.model, requests, 3) - before).norm())
    assert moved[True] < moved[False]


_LIKELIER = ("memit", "alphaedit", "nas", "rect", "encore", "lyaplock", "betaedit", "deltaedit")


@pytest.mark.parametrize("name", _LIKELIER)
def test_edits_make_their_targets_likelier(name: str) -> None:
    settings = {"alphaedit": {"threshold": 1.0, "ridge": 0.1}, "nas": {"threshold": 1.0}}
    settings["deltaedit"] = settings["alphaedit"]
    settings["betaedit"] = {**settings["alphaedit"], "moment_weight": 0.01}
    weight = {} if name in settings else {"moment_weight": 0.01}
    more = {**LOCATE, "value_steps": 20, **settings.get(name, weight)}
    editor = make(name, modules=("down:1-2",), **more)
    batch = stream(editor, n=1)[0]

    def likelihood() -> float:
        total = 0.0
        for micro_batch in editor.model.micro_batches(batch.edit.samples):
            log_p = editor.model.prefix_cache.logits(micro_batch).log_softmax(-1)
            total += float(log_p.gather(1, micro_batch.labels[:, None]).sum())
        return total

    before = likelihood()
    editor.edit(batch)
    assert likelihood() > before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ft_l_stays_within_its_constraint_of_where_a_batch_began(dtype: torch.dtype) -> None:
    editor = make("ft_l", modules=("down:1",), dtype=dtype, norm_constraint=1e-3, lr=1e-2, steps=5)
    for batch in stream(editor):
        before = {name: value.float() for name, value in edited(editor).items()}
        editor.edit(batch)
        for name, value in edited(editor).items():
            change = (value - before[name]).abs().max()
            assert 5e-4 < float(change) <= 1e-3 * (1 + 1e-3)


def test_ft_and_ft_m_are_one_method() -> None:
    both = [make(name, modules=("down:1",), lr=1e-2, steps=3) for name in ("ft", "ft_m")]
    for editor in both:
        editor.edit(stream(editor)[0])
    first, second = (edited(editor) for editor in both)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(both[0].model.weights.original(name), first[name]) for name in first)


def test_locft_trains_anew_on_everything_so_far() -> None:
    """The model after k batches does not depend on which models were looked at before."""
    every = make("locft", modules=("down:1",), passes=3, lr=1e-2, batch_size=2)
    last = make("locft", modules=("down:1",), passes=3, lr=1e-2, batch_size=2)
    last.announce([3])
    untouched = edited(last)
    for k, batch in enumerate(stream(every), start=1):
        every.edit(batch)
        metrics = last.edit(batch)
        assert metrics["replayed"] == 3 * k
        assert ("final_loss" in metrics) == (k == 3)
        if k < 3:
            assert all(torch.equal(untouched[n], w) for n, w in edited(last).items())
    for name, value in edited(every).items():
        torch.testing.assert_close(value, edited(last)[name], rtol=1e-4, atol=1e-6)


def test_steps_below_the_rounding_of_the_model_are_taken() -> None:
    editor = make("locft", ("down:1",), torch.bfloat16, passes=1, lr=1e-6)
    batch = stream(editor, n=1)[0]
    editor.edit(batch)
    (name,) = editor.model.modules
    original, now = editor.model.weights.original(name), editor.model.weights.read(name)
    assert now.dtype == torch.float32
    assert float((now != original.float()).float().mean()) > 0.5


def test_rect_leaves_unchanged_what_it_does_not_keep_whatever_the_model_rounds_to() -> None:
    settings = {"moment_weight": 0.01, **LOCATE}
    memit = make("memit", ("down:1",), torch.bfloat16, **settings)
    rect = make("rect", ("down:1",), torch.bfloat16, keep=1.0, **settings)
    for editor in (memit, rect):
        editor.edit(stream(editor, n=1)[0])
    whole, kept = edited(memit), edited(rect)
    assert all(torch.equal(whole[name], kept[name]) for name in whole)


def test_locft_ends_targets_with_the_end_token() -> None:
    editor = make("locft", modules=("down:1",), passes=1)
    assert isinstance(editor, LocFT)
    batch = stream(editor)[0]
    editor.edit(batch)
    state = editor.state_dict()
    lengths = state["lengths"].tolist()
    pairs = zip(state["labels"].split(lengths), batch.edit.samples, strict=True)
    for labels, sample in pairs:
        assert int(labels[-1]) == editor.model.model.config.eos_token_id  # type: ignore[union-attr]
        assert labels[:-1].tolist() == sample.labels.tolist()
    plain = make("locft", modules=("down:1",), passes=1, end_token=False)
    plain.edit(batch)
    assert plain.state_dict()["lengths"].tolist() == [len(s) for s in batch.edit.samples]


def test_whitening_gives_the_identity_covariance() -> None:
    mixing = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double()
    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(1)).double() @ mixing + 3
    one, parts = RunningCovariance(5), RunningCovariance(5)
    one.update(rows)
    for part in rows.split(17):
        parts.update(part)
    torch.testing.assert_close(one.products, parts.products, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(one.products / 199, rows.T.cov())
    white = one.whiten(rows, shrinkage=0.0)
    torch.testing.assert_close(white.T.cov(), torch.eye(5).double(), rtol=1e-8, atol=1e-8)


def test_stableedit_warms_up_once_on_the_unedited_model() -> None:
    editor = make("stableedit", modules=("down:1",), step=1e-2, warmup_batches=2)
    assert isinstance(editor, StableEdit)
    drawn: list[int] = []

    def draw(n: int, seed: int) -> list[EditBatch]:
        drawn.append(n)
        return text_batches(editor.model, n, 4, seed + 50, editor.group_size)

    editor.load_training_data(draw)
    for batch in stream(editor):
        editor.edit(batch)
    assert drawn == [2]
    bare = StableEdit(editor.model, StableEdit.Config(modules=("down:1",), step=1e-3))
    with pytest.raises(ValueError, match="call load_training_data"):
        bare.edit(stream(bare)[0])


def test_stableedit_without_a_warm_up_needs_nothing() -> None:
    config = StableEdit.Config(modules=("down:1",), step=1e-3, warmup_batches=0)
    assert StableEdit.needs_of(config) == frozenset()
    model = EditableModel(tiny_model("llama").float(), tiny_tokenizer("llama"), ("down:1",))
    editor = StableEdit(model, config)
    assert editor.edit(stream(editor)[0])["shift_norm"] > 0


@pytest.mark.parametrize("name", ["mend", "malmen"])
def test_before_the_stream_a_starred_editor_is_the_plain_one(name: str) -> None:
    networks: list[dict[str, Tensor]] = []
    for editor in (
        make(name, ("gate:1",), **NETWORK),
        make(f"{name}_star", ("gate:1",), **NETWORK),
    ):
        assert isinstance(editor, HypernetworkEditor)
        editor.train_step(stream(editor))
        networks.append({k: v for k, v in editor.state_dict().items() if k != "edited"})
    for key, value in networks[0].items():
        torch.testing.assert_close(value, networks[1][key], rtol=1e-4, atol=1e-6)


def test_malmen_with_rledits_training_is_rledit() -> None:
    networks: list[dict[str, Tensor]] = []
    for name in ("rledit", "malmen_rledit"):
        editor = make(name, ("gate:1",), **NETWORK)
        assert isinstance(editor, HypernetworkEditor)
        editor.train_step(stream(editor))
        networks.append(editor.state_dict())
    assert all(torch.equal(value, networks[1][key]) for key, value in networks[0].items())


@pytest.mark.parametrize("recipe", ["official", "paper", "converged"])
@pytest.mark.parametrize("name", ["malmen_rledit", "mend_rledit"])
def test_rledits_training_follows_the_recipe(name: str, recipe: str) -> None:
    own, rledit = (
        editor_class(n).Config(modules=("gate:1",), reference=recipe, initial_step=1e-3)
        for n in (name, "rledit")
    )
    of_update = {"rule", "tokens", "rank", "n_blocks", "loc_coef"}
    differing = {
        field.name
        for field in fields(own)
        if getattr(own, field.name) != getattr(rledit, field.name)
    }
    assert differing <= of_update and own.optimise == rledit.optimise and own.depth == rledit.depth


def test_alphaedit_tells_the_rank_of_its_null_space() -> None:
    editor = make("alphaedit", threshold=1.0, **LOCATE)
    assert isinstance(editor, AlphaEdit)
    for batch in stream(editor, n=2):
        metrics = editor.edit(batch)
        for name in editor.modules:
            values = torch.linalg.eigvalsh(random_covariances(editor.model)[name].mean().double())
            layer = layer_index(editor.model.family, name)
            assert metrics[f"null_space_rank_{layer}"] == float((values < 1.0).sum()) > 0


@pytest.mark.parametrize("name", ["mend_star", "malmen_star"])
def test_starred_editors_retrain_on_schedule_and_leave_the_model_alone(name: str) -> None:
    model = EditableModel(tiny_model("llama").float(), tiny_tokenizer("llama"), ("gate:1-2",))
    cls = editor_class(name)
    config = cls.Config(
        modules=two_shapes(model.model)[:1],
        rank=4,
        n_blocks=1,
        initial_step=1e-2,
        meta_lr=1e-2,
        retrain_every=2,
        retrain_batches=3,
    )
    editor = cls(model, config)
    batches = stream(editor, n=5)
    drawn: list[tuple[int, int]] = []

    def draw(n: int, seed: int) -> list[EditBatch]:
        drawn.append((n, seed))
        now = edited(editor)
        found = text_batches(model, n, 3, seed + 90, editor.group_size)
        assert all(torch.equal(now[key], value) for key, value in edited(editor).items())
        return found

    editor.load_training_data(draw)
    networks: list[Tensor] = []
    for batch in batches:
        editor.edit(batch)
        networks.append(editor.state_dict()["network.16x24.step_parameter"])
    assert drawn == [(3, 1), (3, 2)]
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(networks)]
    assert changed == [False, True, False, True]


def test_editors_that_need_no_training_data_say_so() -> None:
    with pytest.raises(ValueError, match="needs no training data"):
        make("memit").load_training_data(lambda n, seed: [])
