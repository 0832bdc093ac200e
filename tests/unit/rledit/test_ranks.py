"""Work that several ranks share: dealt evenly, with the same results, in step where sharded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from rledit.capture import capture
from rledit.decoding import decode
from rledit.editors import EDITORS, TrainableEditor
from rledit.editors.base import Editor
from rledit.editors.overlay_editor import OverlayEditor
from rledit.locate.covariance import (
    CovarianceFingerprint,
    KeyCovariance,
    accumulate,
    sum_over_ranks,
)
from rledit.model import EditableModel, Execution
from rledit.prefix_store import PrefixStore
from rledit.protocols import protocol, read
from rledit.ranks import Deal, SingleProcess, gathered, largest, shard
from rledit.scoring import Scorer
from rledit.tokenization import Sample
from rledit.validation import ValidationStream
from rledit.written_answers import target_logprobs
from tests.unit.helpers.interrupted import SMALL_NETWORK, train_with_an_interruption
from tests.unit.helpers.oracle import relative
from tests.unit.helpers.text_edits import equip, random_edits, tiny_tokenizer
from tests.unit.helpers.threaded_ranks import Calls, InStep, ThreadedRank, together
from tests.unit.helpers.tiny_models import (
    double_arithmetic,
    random_batches,
    tiny_model,
    two_shapes,
)

TRAINED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("rledit", "llama", {}),
    "gptj, previous": ("rledit", "gptj", {"kl_reference": "previous"}),
    "gemma2, official": ("rledit", "gemma2", {"reference": "official"}),
    "llama, a gate": ("hiedit", "llama", {"active_modules": 2, "gate_width": 8}),
    "mistral, mend of all tokens": ("mend", "mistral", {"depth": 1, "tokens": "all"}),
    "qwen2, sequences of edits": (
        "dafnet",
        "qwen2",
        {"hidden_width": 8, "head_width": 8, "inner_width": 8, "meta_lr": 1e-3},
    ),
}


# Of these `make test` trains in processes of their own, in tests/cluster/test_ranks.py.
IN_PROCESSES = ("gptj, previous", "gemma2, official", "mistral, mend of all tokens")


@dataclass(frozen=True)
class Place:
    """A rank that has nothing to sum."""

    rank: int
    size: int

    def all_reduce_(self, tensor: Tensor) -> None:
        raise AssertionError("nothing is summed here")


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    double_arithmetic(monkeypatch)


def opened(
    family: str, ranks: Any, *, in_step: bool = True, text: bool = False, **execution: Any
) -> tuple[EditableModel, Calls]:
    whole = tiny_model(family)
    modules = two_shapes(whole)
    tokenizer = tiny_tokenizer(family) if text else None
    access = InStep() if in_step else None
    settings = Execution(**({"token_budget": 60} | execution))
    model = EditableModel(whole, tokenizer, modules, settings, access, ranks)
    return model, Calls(whole)


def editor_of(name: str, model: EditableModel, **settings: Any) -> Editor:
    cls = EDITORS[name]
    known = {f.name for f in dataclasses.fields(cls.Config)}
    chosen = SMALL_NETWORK | {"step": 1e-3, "steps": 3, "passes": 2}
    chosen = {k: v for k, v in chosen.items() if k in known}
    return cls(model, cls.Config(modules=model.modules, **(chosen | settings)))


def trained(case: str, model: EditableModel) -> dict[str, Tensor]:
    """Train two steps, the first of which is interrupted; edit two batches, and read."""
    name, _, settings = TRAINED[case]
    ended, editor = (editor_of(name, model, **settings) for _ in range(2))
    assert isinstance(ended, TrainableEditor) and isinstance(editor, TrainableEditor)
    measured = train_with_an_interruption(ended, editor, 7)
    stream = random_batches(2, 7, 3)
    measured += [editor.edit(batch) for batch in stream]
    readings = read(model, [s for b in stream for s in b.equivalent.samples])
    return {
        **{f"editor {k}": v for k, v in editor.state_dict().items()},
        **{f"weight {k}": v for k, v in model.weights.state_dict().items()},
        "measured": torch.tensor([v for m in measured for v in m.values()], dtype=torch.float64),
        "predicted": torch.cat([r.predicted for r in readings]),
        "nll": torch.tensor([r.nll for r in readings], dtype=torch.float64),
    }


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(
        0.0 if torch.equal(found[k], v) else relative(found[k].double(), v.double())
        for k, v in expected.items()
    )


def same_bits(results: list[dict[str, Tensor]]) -> bool:
    return all(torch.equal(r[k], v) for r in results for k, v in results[0].items())


@pytest.mark.parametrize(
    ("case", "in_step", "size"),
    [
        pytest.param("llama", False, 2, marks=pytest.mark.long),
        pytest.param("llama", True, 2, marks=pytest.mark.long),
        *(
            pytest.param(case, True, 3, marks=pytest.mark.slow if case in IN_PROCESSES else mark)
            for case in TRAINED
            for mark in [() if case == "llama" else pytest.mark.long]
        ),
    ],
)
def test_training_editing_and_reading_equal_those_of_one_process(
    case: str, in_step: bool, size: int
) -> None:
    family = TRAINED[case][1]
    expected = trained(case, opened(family, SingleProcess())[0])

    def work(ranks: ThreadedRank) -> tuple[dict[str, Tensor], Calls]:
        model, calls = opened(family, ranks, in_step=in_step)
        return trained(case, model), calls

    found = together(size, work)
    assert worst(found[0][0], expected) < 1e-9
    assert same_bits([one for one, _ in found])
    if in_step:
        assert len({tuple(calls.order) for _, calls in found}) == 1


def edited(name: str, model: EditableModel) -> dict[str, Tensor]:
    """Edit three batches of unequal size."""
    editor = editor_of(name, model)
    measured: list[float] = []
    for batch in [*random_batches(2, 5), *random_batches(1, 1, 4)]:
        measured += editor.edit(batch).values()
    weights = {f"weight {k}": v for k, v in model.weights.state_dict().items()}
    return weights | {"measured": torch.tensor(measured, dtype=torch.float64)}


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("ft", "gpt2"),
        pytest.param("ft_l", "llama", marks=pytest.mark.long),
        pytest.param("locft", "gptj", marks=pytest.mark.long),
        ("ultraedit", "gpt2"),
    ],
)
def test_editors_that_are_not_trained(name: str, family: str) -> None:
    expected = edited(name, opened(family, SingleProcess())[0])

    def work(ranks: ThreadedRank) -> tuple[dict[str, Tensor], Calls]:
        model, calls = opened(family, ranks)
        return edited(name, model), calls

    found = together(2, work)
    assert worst(found[0][0], expected) < 1e-9
    assert same_bits([one for one, _ in found])
    assert found[0][1].order == found[1][1].order


MEMORIES: dict[str, dict[str, Any]] = {
    "grace": {"radius": 1.0, "lr": 0.5, "steps": 4},
    "wise": {"contexts": ("w01 {}",), "ratio": 1.1, "save_freq": 2, "merge_freq": 4, "lr": 0.5},
    "memoir": {"contexts": ("w01 {}",), "k": 8, "overlap": 0.9, "lr": 0.5},
}


def remembered(name: str, ranks: Any, in_step: bool) -> dict[str, Tensor]:
    """Write edits into a memory, and ask it."""
    modules, access = ("down:2",), InStep() if in_step else None
    settings = Execution(token_budget=60)
    whole = tiny_model("llama")
    model = EditableModel(whole, tiny_tokenizer("llama"), modules, settings, access, ranks)
    editor = editor_of(name, model, **MEMORIES[name])
    assert isinstance(editor, OverlayEditor)
    equip(editor)
    edits = random_edits(5)
    measured = [v for e in (edits[:3], edits[3:]) for v in editor.edit(editor.encode(e)).values()]
    batch = editor.encode([*edits, *random_edits(5, seed=3)])
    samples = [*batch.edit.samples, *batch.unrelated.samples]
    readings = read(model, samples)
    return {
        **{f"memory {k}": v for k, v in editor.memory.tensors().items()},
        "measured": torch.tensor(measured, dtype=torch.float64),
        "routes": editor.memory.route([s.prompt for s in samples]),
        "predicted": torch.cat([r.predicted for r in readings]),
        "nll": torch.tensor([r.nll for r in readings], dtype=torch.float64),
    }


@pytest.mark.parametrize("in_step", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("name", MEMORIES)
def test_memories_are_the_same_on_every_rank(name: str, in_step: bool) -> None:
    expected = remembered(name, SingleProcess(), in_step=False)
    assert set((expected["routes"] >= 0).tolist()) == {True, False} or name == "wise"
    found = together(2, lambda ranks: remembered(name, ranks, in_step))
    assert worst(found[0], expected) < 1e-9
    assert same_bits(found)


@pytest.mark.long
def test_a_second_rank_halves_the_tokens_that_each_passes() -> None:
    """Of training, editing and scoring; sharded ranks pass a token of an empty batch here and
    there."""

    def tokens(ranks: Any, in_step: bool) -> int:
        model, calls = opened("llama", ranks, in_step=in_step)
        editor = editor_of("rledit", model, depth=3)
        assert isinstance(editor, TrainableEditor)
        editor.train_step(random_batches(4, 16, 1))
        stream = random_batches(2, 12, 2)
        for batch in stream:
            editor.edit(batch)
        read(model, [s for b in stream for s in b.unrelated.samples])
        return calls.tokens

    alone = tokens(SingleProcess(), in_step=False)
    for in_step, most in ((False, 0.53), (True, 0.56)):
        for found in together(2, lambda ranks, k=in_step: tokens(ranks, k)):  # type: ignore[misc]
            assert found / alone < most


def test_a_pass_over_a_sharded_model_is_large_as_it_gathers_every_layer() -> None:
    (batch,) = random_batches(1, 300)
    samples = batch.edit.samples
    assert 400 < sum(map(len, samples)) < 4096

    def passes(in_step: bool, **execution: Any) -> int:
        model, _ = opened("llama", SingleProcess(), in_step=in_step, **execution)
        return len(model.micro_batches(samples, tokens_per_row=1))

    assert passes(in_step=True, token_budget=None) < passes(in_step=False, token_budget=None)
    assert passes(in_step=True, token_budget=60) == passes(in_step=False, token_budget=60)


@pytest.mark.parametrize(
    "in_step", [pytest.param(False, marks=pytest.mark.long), True], ids=["whole", "sharded"]
)
def test_scores_with_rivals_and_texts(in_step: bool) -> None:
    edits = random_edits(9)

    def work(ranks: Any) -> tuple[list[Any], Calls, int]:
        model, calls = opened("llama", ranks, in_step=in_step, text=True)
        protocols = [protocol(p) for p in ("token_accuracy", "choice", "generation")]
        scorer = Scorer(model, edits, protocols)
        misses = model.prefix_cache.misses
        found = [scorer.score(4), scorer.score(9), target_logprobs(model, SAMPLES.edit.samples)]
        assert model.prefix_cache.misses == misses, "made by one rank, asked of another"
        return found, calls, misses

    (expected, _, alone) = work(SingleProcess())
    found = together(2, work)
    for scores, _, _ in found:
        assert scores[:2] == expected[:2]
        assert scores[2] == pytest.approx(expected[2], rel=1e-9)
    if in_step:
        assert found[0][1].order == found[1][1].order
    assert sum(misses for _, _, misses in found) == alone


SAMPLES = random_batches(1, 7, 5)[0]


def test_texts_are_written_in_step_whatever_their_length() -> None:
    prompts = [" ".join(f"w{(7 * i + j) % 30:02}" for j in range(1 + i % 4)) for i in range(7)]
    limits = [1, 9, 2, 5, 3, 1, 4]

    def work(ranks: Any) -> tuple[list[list[int]], Calls]:
        model, calls = opened("gptj", ranks, text=True)
        found = decode(model, prompts, limits, stop=lambda token: token % 5 == 0)
        return found + decode(model, prompts[:1], 3) + decode(model, [], 3), calls

    expected, _ = work(SingleProcess())
    found = together(2, work)
    assert [texts for texts, _ in found] == [expected, expected]
    assert found[0][1].order == found[1][1].order


def test_a_validation_is_shared() -> None:
    edits = random_edits(16)

    def work(ranks: Any) -> tuple[dict[str, float], Calls, int]:
        model, calls = opened("llama", ranks, text=True)
        editor = editor_of("rledit", model)
        assert isinstance(editor, TrainableEditor)
        stream = ValidationStream(editor, edits, 8)
        return stream(editor, 0).metrics, calls, calls.tokens

    (expected, _, alone) = work(SingleProcess())
    found = together(2, work)
    for metrics, _, tokens in found:
        assert metrics == pytest.approx(expected, rel=1e-9)
        assert tokens < 0.65 * alone
    assert found[0][1].order == found[1][1].order


def test_statistics_are_shared() -> None:
    texts = [list(range(4, 6 + i)) for i in range(11)]

    def work(ranks: Any) -> tuple[list[KeyCovariance], int, Calls]:
        model, calls = opened("llama", ranks)
        moments = {
            name: KeyCovariance(
                CovarianceFingerprint(model_hash="", module=name, corpus_hash="", dtype="float64"),
                model.shape(name)[0],
            )
            for name in model.modules
        }
        seen = accumulate(model, texts, moments)
        sum_over_ranks(ranks, moments)
        return list(moments.values()), seen, calls

    expected, alone, _ = work(SingleProcess())
    found = together(2, work)
    for moments, seen, _ in found:
        assert seen == pytest.approx(alone / 2, abs=1)
        for moment, whole in zip(moments, expected, strict=True):
            assert moment.count == whole.count == alone
            assert relative(moment.total, whole.total) < 1e-12
    assert found[0][2].order == found[1][2].order


def test_a_rank_without_a_prompt_gets_the_rows_of_the_others() -> None:
    (batch,) = random_batches(1, 1, 6)
    expected = capture(opened("llama", SingleProcess())[0], batch.edit)
    for in_step in (False, True):
        found = together(
            3,
            lambda ranks, k=in_step: capture(  # type: ignore[misc]
                opened("llama", ranks, in_step=k)[0], batch.edit
            ),
        )
        for one in found:
            assert torch.equal(one.row_group, expected.row_group)
            for name, keys in expected.keys.items():
                assert relative(one.keys[name], keys) < 1e-12
                assert relative(one.values[name], expected.values[name]) < 1e-12


def test_a_sharded_model_takes_no_prefix_store(tmp_path: Any) -> None:
    def work(ranks: ThreadedRank) -> str:
        model, _ = opened("llama", ranks)
        with pytest.raises(ValueError, match="record prefixes together") as refused:
            model.prefix_cache.keep_in(PrefixStore(tmp_path, "", 1 << 20))
        return str(refused.value)

    assert all("leave the store out" in text for text in together(2, work))


@pytest.mark.parametrize("first", [0, 1, 7])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_samples_are_dealt_completely_and_evenly(size: int, first: int) -> None:
    (batch,) = random_batches(1, 7)
    samples = batch.edit.samples
    shares = [shard(samples, Place(rank, size), first) for rank in range(size)]
    assert sorted(i for share in shares for i in share) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    longest = max(range(7), key=lambda i: len(samples[i]))
    turned = [shard(samples, Place(rank, size), first + 1) for rank in range(size)]
    if size > 1:
        assert [longest in share for share in shares] != [longest in share for share in turned]


@pytest.mark.parametrize("size", [2, 3, 8])
def test_no_rank_gets_the_longer_sample_of_every_round(size: int) -> None:
    ids = torch.zeros(200, dtype=torch.long)
    samples = [Sample(ids[: 5 + i], ids[: 5 + i]) for i in range(8 * size)]
    tokens = [
        sum(len(samples[i]) for i in shard(samples, Place(rank, size))) for rank in range(size)
    ]
    assert len(set(tokens)) == 1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_deal_lasts_and_is_even_among_the_first_prompts_too(size: int) -> None:
    phases = [p for b in random_batches(30, 10, 1) for p in (b.edit, b.equivalent, b.unrelated)]
    samples = [sample for phase in phases for sample in phase.samples]
    deals = [Deal([*samples, *samples[:5]], Place(rank, size)) for rank in range(size)]
    for asked in (samples, samples[:192], samples[100:450]):
        shares = [deal.own(asked) for deal in deals]
        assert sorted(i for share in shares for i in share) == list(range(len(asked)))
        tokens = [sum(len(asked[i]) for i in share) for share in shares]
        assert max(tokens) < 1.1 * min(tokens)
    half = [set(deal.own(samples[:100])) for deal in deals]
    assert all(set(deal.own(samples)) >= own for deal, own in zip(deals, half, strict=True))


def test_the_largest_and_the_gathered() -> None:
    def work(ranks: ThreadedRank) -> tuple[int, list[int]]:
        own = torch.arange(ranks.rank, 5, 3)
        return largest(ranks, (5, 9, 2)[ranks.rank]), gathered(ranks, 10 * own, own, 5).tolist()

    assert together(3, work) == [(9, [0, 10, 20, 30, 40])] * 3
    alone = torch.tensor([3, 1, 2])
    assert largest(SingleProcess(), 4) == 4
    places = torch.tensor([2, 0, 1])
    assert gathered(SingleProcess(), alone, places, 3).tolist() == [1, 2, 3]
