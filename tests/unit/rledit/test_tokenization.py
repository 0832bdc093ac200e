"""The token contract: one space before the answer, BOS where declared, shifted labels, groups."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rledit.micro_batches import make_micro_batches
from rledit.records import Edit, Locality
from rledit.tokenization import IGNORED, Encoder, Phase, Sample, TokenizationError

WORDS = ["<s>", "</s>", "<unk>", "the", "capital", "of", "Foria", "is", "Lun", "Mar", "city"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_labels_are_shifted_and_cover_the_answer_only(tokenizer: PreTrainedTokenizerFast) -> None:
    sample = Encoder(tokenizer).sample("the capital of Foria is", "Lun Mar")
    words = [WORDS[i] for i in sample.input_ids]
    assert words == ["the", "capital", "of", "Foria", "is", "Lun"]
    assert sample.labels.tolist() == [IGNORED] * 4 + [WORDS.index("Lun"), WORDS.index("Mar")]


@pytest.mark.parametrize("bos", [True, False])
def test_bos_is_on_the_prompt_where_the_tokenizer_writes_it(
    tokenizer: PreTrainedTokenizerFast, bos: bool
) -> None:
    if bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    sample = Encoder(tokenizer).sample("the city", "Lun")
    assert (WORDS[int(sample.input_ids[0])] == "<s>") == bos
    assert tokenizer.bos_token_id not in sample.answer_ids


@pytest.mark.parametrize("answer", ["Lun", " Lun", "  Lun ", "\tLun"])
def test_any_space_around_the_answer_becomes_one(
    tokenizer: PreTrainedTokenizerFast, answer: str
) -> None:
    encoder = Encoder(tokenizer)
    assert encoder.sample("the city ", answer).key == encoder.sample("the city", "Lun").key


def test_byte_level_tokenizers_give_the_answer_its_one_space() -> None:
    """With byte-level BPE the space belongs to the answer's first token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    vocabulary |= {"Ġ" + "a": len(vocabulary)}
    backend = Tokenizer(models.BPE(vocabulary, [("Ġ", "a")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert encoder.answer_ids("x", "a") == [vocabulary["Ġa"]]


@pytest.mark.parametrize("answer", ["", "  "])
def test_a_blank_answer_is_refused(tokenizer: PreTrainedTokenizerFast, answer: str) -> None:
    with pytest.raises(TokenizationError, match="zsre.json:7: blank answer"):
        Encoder(tokenizer).sample("the city", answer, "zsre.json:7")


def test_a_prompt_with_no_room_for_the_answer_is_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoder = Encoder(tokenizer, max_length=5)
    encoder.sample("the capital of Foria is", "Lun")
    with pytest.raises(TokenizationError, match="row 3.*exceed the model's 5 positions"):
        encoder.sample("the capital of Foria is", "Lun Mar", "row 3")


def edit(prompt: str, target: str) -> Edit:
    return Edit(
        edit_id=prompt,
        prompt=prompt,
        target=target,
        rephrases=("Foria is",),
        locality=(Locality(prompt="the city", answer="Mar"),),
    )


def test_token_weights_are_those_of_the_loss_groups(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(tokenizer)
    edits = [edit("the", "Lun"), edit("of", "Lun Mar"), edit("is", "Lun Mar")]
    phase = encoder.batch(edits, group_size=2).edit
    assert phase.weights.tolist() == [1 / 3, 1 / 3, 1 / 2]


def test_the_longest_samples_come_first_each_kind_on_its_own(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoder = Encoder(tokenizer)
    given = [edit("the", "Lun"), edit("the city of", "Lun"), edit("of", "Lun"), edit("is", "Mar")]
    batch = encoder.batch(given, 4, "longest_first")
    assert [len(s) for s in batch.edit.samples] == [3, 1, 1, 1]
    ties = [s.key for s in batch.edit.samples[1:]]
    assert ties == [encoder.sample(e.prompt, e.target).key for e in (given[0], given[2], given[3])]
    assert [len(s) for s in encoder.batch(given, 4).edit.samples] == [1, 3, 1, 1]


def test_what_an_edit_lacks_is_left_out_and_named_to_who_learns_from_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    bare = Edit(edit_id="e", prompt="the", target="Lun", source="zsre.json:9")
    batch = Encoder(tokenizer).batch([edit("the city", "Mar"), bare], 4)
    assert [len(p) for p in (batch.edit, batch.equivalent, batch.unrelated)] == [2, 1, 1]
    batch.require([])
    with pytest.raises(TokenizationError, match=r"zsre.json:9: the edit has no rephrase"):
        batch.require(["rephrase"])
    with pytest.raises(TokenizationError, match=r"zsre.json:9: the edit has no locality prompt"):
        batch.require(["locality prompt"])
    assert Phase((), 4).weights.tolist() == []


def test_complete_groups_are_counted() -> None:
    one = Sample(torch.tensor([1]), torch.tensor([2]))
    assert [Phase((one,) * n, 4).n_complete_groups for n in (3, 4, 6, 8)] == [0, 1, 1, 2]


def test_chunks_hold_every_sample_once_within_the_budget() -> None:
    samples = [
        Sample(torch.arange(n), torch.cat([torch.full((n - 1,), IGNORED), torch.tensor([n])]))
        for n in (5, 2, 9, 3, 3, 30)
    ]
    micro_batches = make_micro_batches(samples, token_budget=16)
    assert sorted(i for c in micro_batches for i in c.index.tolist()) == list(range(6))
    assert all(len(c.samples) * c.width <= 16 or len(c.samples) == 1 for c in micro_batches)
    assert [len(c.samples) for c in micro_batches] == [1, 2, 1, 1, 1]
    for micro_batch in micro_batches:
        flat = micro_batch.input_ids().flatten()
        assert [int(flat[r]) + 1 for r in micro_batch.rows] == micro_batch.labels.tolist()


def test_chunks_bound_their_answer_rows_too() -> None:
    """Answers of 3 tokens: 64 tokens would hold 12 of these samples, 8 answer rows hold 2."""
    answered = Sample(torch.arange(5), torch.tensor([IGNORED, IGNORED, 3, 4, 5]))
    micro_batches = make_micro_batches([answered] * 5, token_budget=64)
    assert [len(c.rows) for c in micro_batches] == [6, 6, 3]
    (alone,) = make_micro_batches([answered], token_budget=8)
    assert len(alone.rows) == 3


def test_a_chunk_with_enough_tokens_takes_no_much_longer_sample() -> None:
    samples = [
        Sample(torch.arange(n), torch.cat([torch.full((n - 1,), IGNORED), torch.tensor([n])]))
        for n in (4, 4, 4, 5, 6, 20, 4)
    ]
    widths = [[len(s) for s in c.samples] for c in make_micro_batches(samples, token_budget=64)]
    assert widths == [[4, 4, 4, 4, 5], [6], [20]]
    (whole,) = make_micro_batches(samples, token_budget=1000)
    assert len(whole.samples) == 7
