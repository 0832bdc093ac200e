"""What would fail or wait on a card, on a pretended one: devices that do not fit, copies, reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rledit.editors.crispedit import CrispEdit, CrispEditConfig
from rledit.locate.suffix import PrefixStates
from rledit.model import EditableModel, Execution
from rledit.prefix_passes import CARD_LONG, CARD_ROWS, PrefixPasses
from rledit.prefix_store import PrefixStore
from rledit.tokenization import Sample
from tests.gpu import checks
from tests.unit.helpers.pretended_card import CARD, PretendedCard, on_card
from tests.unit.helpers.recorded_passes import shapes_recorded
from tests.unit.helpers.text_edits import equip, text_batches, tiny_tokenizer
from tests.unit.helpers.tiny_models import random_batches, tiny_model

MODULES = ("down:1,3",)
NAMES = ("ultraedit", pytest.param("rledit", marks=pytest.mark.long))
SAMPLES = random_batches(1, 12)[0].edit.samples


@pytest.fixture
def card() -> Iterator[PretendedCard]:
    with PretendedCard() as entered:
        yield entered


def model(execution: Execution | None = None) -> EditableModel:
    made = on_card(tiny_model("llama").float())
    return EditableModel(made, tiny_tokenizer("llama"), MODULES, execution)


def waits(card: PretendedCard) -> int:
    return sum(card.waits.values())


def test_what_a_card_refuses_is_refused_and_waits_are_counted(card: PretendedCard) -> None:
    there, here = torch.ones(3, device=CARD), torch.ones(3)
    assert there.device == CARD and (there + 1).tolist() == [2, 2, 2]
    assert waits(card) == 1
    with pytest.raises(RuntimeError, match="same device, but aten::add has"):
        there + here
    assert (there + here.to(CARD) + here[0]).sum().item() == 9
    assert there[torch.tensor([0, 2])].shape == (2,)
    assert dict(card.waits) == {"aten::_to_copy": 2, "aten::_local_scalar_dense": 1}
    with pytest.raises(RuntimeError, match="same device"):
        here[torch.tensor([0, 2], device=CARD)]


@pytest.mark.parametrize("name", NAMES)
def test_edits_are_those_of_the_cpu(name: str, card: PretendedCard) -> None:
    found, expected = (checks.edits_of(name, where, torch.float32) for where in (CARD, checks.CPU))
    assert checks.distance(found, expected) < checks.tolerance(name, torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_how_often_the_host_waits_does_not_depend_on_the_edits(
    name: str, card: PretendedCard
) -> None:
    one = checks.editor(name, CARD, torch.float32)
    found = []
    for size in (4, 16):
        (batch,) = text_batches(one.model, 1, size, group_size=one.group_size)
        one.model.prefix_cache.clear()
        card.waits.clear()
        one.edit(batch)
        found.append(dict(card.waits))
    assert found[0] == found[1] and found[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_merge_waits_once_for_all_matrices(name: str, card: PretendedCard) -> None:
    """In bfloat16, where it says how much of each shift was realised."""
    one: Any = checks.editor(name, CARD, torch.bfloat16)
    (batch,) = text_batches(one.model, 1, 4, group_size=one.group_size)
    with torch.no_grad():
        proposal = one.propose(batch)
        card.waits.clear()
        assert len(one.merge(proposal)) == 2
    assert waits(card) == 1


@pytest.mark.parametrize("reference", ["paper", "official"])
def test_crispedit_goes_on_from_a_state_that_lies_on_the_cpu(
    reference: str, card: PretendedCard
) -> None:
    def made() -> CrispEdit:
        settings = {"mode": "sequential", "passes": 2, "energy": 0.9, "reference": reference}
        editor = CrispEdit(model(), CrispEditConfig(modules=MODULES, **settings))
        equip(editor)
        return editor

    straight, resumed = made(), made()
    first, second = text_batches(straight.model, 2, 4)
    straight.edit(first)
    matrices, state = (
        {name: value.cpu().clone() for name, value in kept.items()}
        for kept in (straight.model.weights.state_dict(), straight.state_dict())
    )
    resumed.model.weights.load_state_dict(matrices)
    resumed.load_state_dict(state)
    assert resumed.edit(second) == straight.edit(second)
    steps = {k: v for k, v in resumed.state_dict().items() if k.endswith(".step")}
    assert steps and all(step.device == checks.CPU for step in steps.values())


def stored(folder: Path, budget: int, **execution: bool) -> EditableModel:
    made = model(Execution(**execution))
    cache = made.prefix_cache
    cache.keep_in(PrefixStore(folder, cache.fingerprint(), budget))
    return made


def logits(made: EditableModel, samples: tuple[Sample, ...] = SAMPLES) -> list[Tensor]:
    with torch.no_grad():
        return [made.prefix_cache.logits(m).cpu() for m in made.micro_batches(samples)]


def test_prefixes_are_moved_in_one_piece(card: PretendedCard) -> None:
    found = []
    for n in (4, 12):
        made = model()
        (micro_batch,) = made.micro_batches(SAMPLES[:n])
        card.waits.clear()
        made.prefix_cache.prefix_of(micro_batch)
        found.append(dict(card.waits))
    assert found[0] == found[1]


def test_prefixes_enter_a_store_in_one_piece(
    card: PretendedCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PrefixPasses, "fixed_rows", lambda *_: 4)
    like = [s for s in random_batches(1, 40)[0].edit.samples if len(s) == len(SAMPLES[0])]
    found = []
    for n in (2, 4):
        made = stored(tmp_path / str(n), 1 << 30)
        card.waits.clear()
        assert list(made.prefix_cache.store_ahead(like[:n])) == [n]
        found.append(dict(card.waits))
    assert found[0] == found[1]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the token matrices that are run through the layers below."""
    return shapes_recorded(monkeypatch)


@pytest.mark.parametrize("alike", [True, False])
def test_passes_that_fill_a_store_have_one_shape_for_each_length(
    alike: bool,
    card: PretendedCard,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recorded: list[tuple[int, ...]],
) -> None:
    """So that a prompt has the same bits in any company; alone where its row makes a difference."""
    monkeypatch.setattr(PrefixPasses, "_rows_alike", lambda *_: alike)
    rows = CARD_ROWS if alike else 1
    one, other = (stored(tmp_path / name, 1 << 30) for name in ("one", "other"))
    assert recorded == [(rows, 11)] * 2  # their fingerprints
    recorded.clear()
    logits(one)
    assert {shape[0] for shape in recorded} == {rows}
    for sample in reversed(SAMPLES):
        logits(other, (sample,))
    for sample in SAMPLES:
        found, expected = (m.prefix_cache.store.get(sample) for m in (one, other))  # type: ignore[union-attr]
        assert found is not None and expected is not None
        assert all(map(torch.equal, found, expected))
        assert all(part.device == checks.CPU for part in found)
    one.prefix_cache.store.flush()  # type: ignore[union-attr]
    recorded.clear()
    again = stored(tmp_path / "one", 1 << 30)
    assert recorded == [(rows, 11)]
    for mine, theirs in zip(logits(again), logits(one), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert recorded == [(rows, 11)]  # nothing is run again


@pytest.mark.parametrize("fault", ["row", "company", None])
def test_a_row_or_a_company_that_makes_a_difference_is_found(
    fault: str | None, card: PretendedCard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = PrefixPasses._record

    def record(self: PrefixPasses, ids: Tensor) -> tuple[Tensor, Tensor]:
        parts = [whole(self, ids[i : i + 1]) for i in range(len(ids))]
        hidden, attention = (torch.cat([p[k] for p in parts]) for k in (0, 1))
        if fault == "row":
            hidden[3:4] *= 1 + 1e-6
        if fault == "company" and not bool((ids == ids[:1]).all()):
            hidden = hidden * (1 + 1e-6)
        return hidden, attention

    monkeypatch.setattr(PrefixPasses, "_record", record)
    made = stored(tmp_path, 1 << 30)
    assert made.prefix_cache.fixed_rows(7) == (CARD_ROWS if fault is None else 1)
    tried: list[int] = []
    monkeypatch.setattr(PrefixPasses, "_rows_alike", lambda _, length: tried.append(length))
    again = stored(tmp_path, 1 << 30)  # of a process that finds what this one has found
    assert again.prefix_cache.fixed_rows(7) == made.prefix_cache.fixed_rows(7)
    assert tried == [11]  # the fingerprint is from before the store
    assert again.prefix_cache.fixed_rows(CARD_LONG) == 1


@pytest.mark.parametrize("first", ["of the store", "of the cache"])
def test_prefixes_of_a_full_store_and_of_the_card_are_padded_together(
    first: str, card: PretendedCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some lie in the store, in host memory, and those it had no room for on the card."""
    monkeypatch.setattr(PrefixPasses, "fixed_rows", lambda *_: 1)
    some = model().prefix_cache.n_bytes(SAMPLES[:6])
    made = stored(tmp_path, some, cache_on_device=True)
    expected = logits(model())
    for samples in (SAMPLES[:6], SAMPLES[6:]):
        logits(made, samples)
    cache = made.prefix_cache
    kept = [t for prefix in cache._cache.values() for t in prefix]
    assert kept and all(t.device == CARD for t in kept)
    (micro_batch,) = made.micro_batches(SAMPLES)
    found = cache._found(micro_batch.samples)
    found.sort(key=lambda prefix: (prefix[0].device == CARD) == (first == "of the store"))
    card.waits.clear()
    cache._padded(found)
    assert dict(card.waits) == {"aten::_to_copy": 2}  # of all that come from the store
    for one, other in zip(logits(made), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_beginnings_are_kept_without_a_read_for_each(card: PretendedCard) -> None:
    found = []
    for n in (4, 12):
        made = model()
        hidden = [torch.ones(len(s), 16, device=CARD) for s in SAMPLES[:n]]
        lengths = torch.tensor([1 + i % 2 for i in range(n)])
        card.waits.clear()
        states = PrefixStates(made, 1, hidden, lengths)
        states.continuation(torch.arange(n), torch.ones(n, dtype=torch.long))
        found.append(dict(card.waits))
    assert found[0] == found[1]
