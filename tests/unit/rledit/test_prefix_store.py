"""A prefix store changes no number: whoever fills it, in whatever order, and whatever is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rledit import prefix_passes, prefix_store
from rledit.editors.rledit import RLEdit, RLEditConfig
from rledit.model import EditableModel, Execution
from rledit.prefix_passes import LONG, PrefixPasses
from rledit.prefix_store import PrefixStore, passes_of_one_length
from rledit.tokenization import Sample
from tests.unit.helpers.recorded_passes import shapes_recorded
from tests.unit.helpers.tiny_models import random_batches, tiny_model

MODULES = ("down:2-3",)
BATCHES = random_batches(3, 12)
SAMPLES = [s for b in BATCHES for p in (b.edit, b.equivalent, b.unrelated) for s in p.samples]


def model_of(
    folder: Path | None,
    family: str = "llama",
    dtype: torch.dtype = torch.float64,
    budget: int = 1 << 30,
    seed: int = 0,
) -> EditableModel:
    model = EditableModel(
        tiny_model(family, seed).to(dtype), None, MODULES, Execution(token_budget=48)
    )
    if folder is not None:
        cache = model.prefix_cache
        cache.keep_in(PrefixStore(folder, cache.fingerprint(), budget))
    return model


def store_of(model: EditableModel) -> PrefixStore:
    store = model.prefix_cache.store
    assert store is not None
    return store


def logits(model: EditableModel, samples: Sequence[Sample] = SAMPLES) -> list[Tensor]:
    with torch.no_grad():
        return [model.prefix_cache.logits(m) for m in model.micro_batches(samples)]


def fill(model: EditableModel, samples: Sequence[Sample] = SAMPLES) -> None:
    for _ in model.prefix_cache.store_ahead(samples):
        pass
    store_of(model).flush()


def same(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


TRIES = PrefixPasses.same_bits


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are recorded by themselves: trying on matrices this small takes many passes."""
    monkeypatch.setattr(PrefixPasses, "same_bits", lambda *_: ())


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the token matrices that are run through the layers below."""
    return shapes_recorded(monkeypatch)


@pytest.mark.parametrize(("family", "dtype"), [("llama", "float32"), ("gptj", "float64")])
def test_a_prefix_has_the_bits_that_its_prompt_has_by_itself(
    family: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PrefixPasses, "same_bits", TRIES)
    samples = [s for s in SAMPLES if len(s) in (5, 8)]
    one = model_of(tmp_path / "one", family, getattr(torch, dtype))
    fill(one, samples)
    other = model_of(tmp_path / "other", family, getattr(torch, dtype))
    for part in (samples[5:9], samples[::-3], samples):  # in another order, in other company
        fill(other, part)
    for sample in samples:
        alone = one.prefix_cache._record(sample.input_ids[None])
        for model in (one, other):
            found = store_of(model).get(sample)
            assert found is not None
            assert same(found, [part[0] for part in alone])


def test_without_equal_bits_in_company_each_prompt_is_recorded_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: list[tuple[int, ...]]
) -> None:
    monkeypatch.setattr(PrefixPasses, "same_bits", TRIES)
    whole = PrefixPasses._record

    def record(self: PrefixPasses, ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden, attention = whole(self, ids)
        return hidden + 1e-9 * len(ids), attention  # a machine whose sums know their company

    monkeypatch.setattr(PrefixPasses, "_record", record)
    model = model_of(tmp_path)
    for length in {len(s) for s in SAMPLES}:
        assert model.prefix_cache.same_bits(length) == ()
    recorded.clear()
    fill(model)
    assert {rows for rows, _ in recorded} == {1}
    assert len(recorded) == len({s.key for s in SAMPLES})


def test_a_pass_is_taken_only_if_every_row_has_the_bits_it_has_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PrefixPasses, "same_bits", TRIES)
    monkeypatch.setattr(prefix_passes, "_ENTRIES", 1000)
    whole = PrefixPasses._record

    def fair(self: PrefixPasses, ids: Tensor) -> tuple[Tensor, Tensor]:
        parts = [whole(self, ids[i : i + 1]) for i in range(len(ids))]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def last_differs(self: PrefixPasses, ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden, attention = fair(self, ids)
        if len(ids) == 16:
            attention[-1, -1] *= 1 + 1e-12
        return hidden, attention

    for record, sizes in ((fair, (16, 4)), (last_differs, (4,))):
        monkeypatch.setattr(PrefixPasses, "_record", record)
        passes = model_of(tmp_path / record.__name__).prefix_cache
        assert passes.same_bits(7) == sizes
        assert passes.same_bits(LONG) == ()


def test_a_length_is_tried_by_one_prompt_alone_and_in_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: list[tuple[int, ...]]
) -> None:
    monkeypatch.setattr(PrefixPasses, "same_bits", TRIES)
    monkeypatch.setattr(prefix_passes, "_ENTRIES", 1)
    model = model_of(tmp_path)
    recorded.clear()
    model.prefix_cache.same_bits(7)
    assert recorded == [(1, 7), (16, 7), (4, 7)]


def test_passes_are_filled_where_that_is_cheaper() -> None:
    def shapes(n: int, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
        samples = [Sample(torch.full((5,), i), torch.full((5,), i)) for i in range(n)]
        passes = list(passes_of_one_length(samples, lambda _: sizes))
        assert [s for part, _ in passes for s in part] == samples
        return [(len(part), rows) for part, rows in passes]

    assert shapes(30, (16, 4)) == [(16, 16), (14, 16)]
    assert shapes(23, (16, 4)) == [(16, 16), (4, 4), (3, 4)]
    assert shapes(5, (16, 4)) == [(4, 4), (1, 1)]
    assert shapes(3, ()) == [(1, 1)] * 3


def test_a_second_process_records_nothing_and_finds_the_same_bits(
    tmp_path: Path, recorded: list[tuple[int, ...]]
) -> None:
    cold = model_of(tmp_path)
    first = logits(cold)
    store_of(cold).flush()
    warm = model_of(tmp_path)
    recorded.clear()
    assert same(logits(warm), first)
    assert recorded == []
    assert warm.prefix_cache.hit_rate == 1
    reference = logits(model_of(None))
    for found, expected in zip(first, reference, strict=True):
        torch.testing.assert_close(found, expected)


def test_what_others_write_meanwhile_is_found(
    tmp_path: Path, recorded: list[tuple[int, ...]]
) -> None:
    one, other = model_of(tmp_path), model_of(tmp_path)
    fill(one, SAMPLES[:50])
    store_of(other).refresh()
    recorded.clear()
    logits(other, SAMPLES[:50])
    assert recorded == []


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    old, new = tmp_path / ".tmp-old", tmp_path / ".tmp-new"
    for path in (old, new):
        path.write_bytes(b"half")
    hours_ago = time.time() - 2 * prefix_store.ABANDONED_SECONDS
    os.utime(old, (hours_ago, hours_ago))
    model_of(tmp_path)
    assert not old.exists()
    assert new.exists()  # somebody may be writing it


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _lacking_rows(path: Path) -> None:
    tensors = load_file(path)
    identity = {"identity": "any", "format": prefix_store.FORMAT}
    save_file({**tensors, "hidden": tensors["hidden"][1:].clone()}, path, identity)


@pytest.mark.parametrize(
    "damage", [_cut, *(pytest.param(d, marks=pytest.mark.long) for d in (_empty, _lacking_rows))]
)
def test_a_broken_file_is_removed_and_its_prompts_are_recorded_again(
    damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cold = model_of(tmp_path)
    fill(cold)
    expected = logits(cold)
    (file,) = tmp_path.glob("*.safetensors")
    damage(file)
    again = model_of(tmp_path)
    assert f"{file} is broken" in caplog.text
    assert not file.exists()
    assert len(store_of(again)) == 0
    assert same(logits(again), expected)
    fill(again)
    assert len(store_of(again)) == len({s.key for s in SAMPLES})


def test_a_file_of_another_model_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = logits(model_of(tmp_path / "own"))
    foreign = model_of(tmp_path, seed=1)
    fill(foreign)
    (file,) = tmp_path.glob("*.safetensors")
    own = model_of(tmp_path)
    assert f"{file} is not read: it was made from another model" in caplog.text
    assert same(logits(own), expected)
    assert file.exists()  # somebody's own


def test_the_fingerprint_tells_models_layers_and_types_apart() -> None:
    def fingerprint(model: EditableModel) -> str:
        return model.prefix_cache.fingerprint()

    own = model_of(None)
    assert fingerprint(own) == fingerprint(model_of(None))
    for name in own.modules:
        own.weights.set(name, 1.5 * own.weights.read(name))
    assert fingerprint(own) == fingerprint(model_of(None))  # nothing below is edited
    lower = EditableModel(tiny_model("llama"), None, ("down:1",))
    others = [lower, model_of(None, seed=1), model_of(None, dtype=torch.float32)]
    assert len({fingerprint(m) for m in (own, *others)}) == 4


def test_a_budget_is_kept_and_what_is_over_it_is_run_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    free = model_of(tmp_path / "free")
    expected = logits(free)
    whole = free.prefix_cache.n_bytes(SAMPLES)
    small = model_of(tmp_path / "small", budget=whole // 2)
    for _ in small.prefix_cache.store_ahead(SAMPLES):  # no room for all: none is begun
        raise AssertionError
    for _ in range(2):
        assert same(logits(small), expected)
    store_of(small).flush()
    files = sum(p.stat().st_size for p in (tmp_path / "small").glob("*.safetensors"))
    assert 0 < store_of(small).n_bytes <= whole // 2 + 4096
    assert files == store_of(small).n_bytes
    assert caplog.text.count("takes no more") == 1


def test_a_full_disk_ends_the_writing_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = logits(model_of(tmp_path / "other"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    monkeypatch.setattr(prefix_store, "FLUSH_BYTES", 4096)
    model = model_of(tmp_path / "full")
    for _ in range(2):
        assert same(logits(model), expected)
    assert caplog.text.count("No space left on device") == 1
    assert [p for p in (tmp_path / "full").glob("*") if p.suffix != ".json"] == []
    assert model.prefix_cache.hits > 0  # what was put is found in memory


def editor_on(model: EditableModel) -> RLEdit:
    config = RLEditConfig(
        modules=MODULES, initial_step=1e-2, rank=3, n_blocks=1, depth=2, train_steps=2
    )
    return RLEdit(model, config)


@pytest.mark.long
def test_training_is_equal_cold_warm_and_resumed(
    tmp_path: Path, recorded: list[tuple[int, ...]]
) -> None:
    def trained(editor: RLEdit, until: int | None = None) -> dict[str, Tensor]:
        for event in editor.train_batches(BATCHES):
            if event.done == until:
                break
        store_of(editor.model).flush()
        return editor.training_state_dict()

    torch.manual_seed(0)
    cold = trained(editor_on(model_of(tmp_path)))
    torch.manual_seed(0)
    half = trained(editor_on(model_of(tmp_path / "other")), until=2)
    torch.manual_seed(1)
    resumed = editor_on(model_of(tmp_path))  # with a store that another has made
    resumed.load_training_state_dict(half)
    recorded.clear()
    found = trained(resumed)
    torch.manual_seed(0)
    warm = trained(editor_on(model_of(tmp_path)))
    assert recorded == [(1, 11)]  # the fingerprint of the last model
    assert cold.keys() == warm.keys() == found.keys()
    for name, value in cold.items():
        assert torch.equal(value, warm[name]), name
        assert torch.equal(value, found[name]), name


def test_what_passes_give_is_tried_once_on_machines_of_one_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later processes find it beside the prefixes; broken notes and other machines try again."""
    monkeypatch.setattr(PrefixPasses, "same_bits", TRIES)
    tried: list[int] = []
    whole = PrefixPasses._tried

    def count(self: PrefixPasses, length: int, sizes: Sequence[int]) -> tuple[int, ...]:
        tried.append(length)
        return whole(self, length, sizes)

    monkeypatch.setattr(PrefixPasses, "_tried", count)
    first = model_of(tmp_path)
    found = {length: first.prefix_cache.same_bits(length) for length in (7, 9)}
    assert tried == [7, 9]
    second = model_of(tmp_path)
    assert {length: second.prefix_cache.same_bits(length) for length in (7, 9)} == found
    assert tried == [7, 9]
    next(tmp_path.glob("tried-*-7.json")).write_text("{")
    assert model_of(tmp_path).prefix_cache.same_bits(7) == found[7]
    assert tried == [7, 9, 7]
    monkeypatch.setattr(prefix_store, "_processor", lambda: "another")
    model_of(tmp_path).prefix_cache.same_bits(9)
    assert tried == [7, 9, 7, 9]
    model_of(tmp_path, seed=1).prefix_cache.same_bits(9)  # another model
    assert tried == [7, 9, 7, 9, 9]


def test_a_file_that_cannot_be_published_is_kept_and_published_later(tmp_path: Path) -> None:
    """An object store that is away for a while costs no prefix, and counts none twice."""
    published: list[str] = []
    away = True

    def publish(path: Path) -> None:
        if away and path.suffix == ".safetensors":
            raise RuntimeError("the object store is away")
        published.append(path.name)

    model = model_of(None)
    cache = model.prefix_cache
    cache.keep_in(PrefixStore(tmp_path, cache.fingerprint(), 1 << 30, published=publish))
    half = len(SAMPLES) // 2
    fill(model, SAMPLES[:half])
    store = store_of(model)
    plain = model_of(tmp_path / "plain")
    fill(plain, SAMPLES[:half])
    assert store.n_bytes == store_of(plain).n_bytes and not store.missing(SAMPLES[:half])
    away = False
    fill(model)
    files = {path.name for path in tmp_path.glob("*.safetensors")}
    assert len(files) == 2 and files <= set(published)
    assert same(logits(model), logits(plain))
