"""BOS stands where the tokenizer itself writes it, by whatever means its family has for that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from pipeline.config.presets import PRESETS
from pipeline.inputs.checkpoints import CheckpointError
from pipeline.inputs.tokenizer_files import load_tokenizer, writes_bos
from rledit.bos import before_text, written_around
from rledit.measurements.perplexity import text_samples
from rledit.model import EditableModel
from rledit.tokenization import IGNORED, Encoder, TokenizationError
from rledit.world import BOS_FAMILIES
from tests.unit.helpers.text_edits import tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model


def byte_level(special: list[str], **named: Any) -> tuple[Tokenizer, dict[str, int]]:
    """Byte-level BPE without merges, as Llama-3, GPT-J and Qwen have it."""
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend, vocabulary


def llama3(written: str = "{bos} $A") -> PreTrainedTokenizerFast:
    """BOS by a template post-processor behind the byte-level one; no `add_bos_token` at all."""
    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    backend, vocabulary = byte_level([bos, eos])
    template = processors.TemplateProcessing(
        single=written.format(bos=bos, eos=eos),
        special_tokens=[(bos, vocabulary[bos]), (eos, vocabulary[eos])],
    )
    backend.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)


def sentencepiece(**settings: Any) -> LlamaTokenizer:
    """Llama-2's class, which Mistral's and (with other settings) Gemma's resemble."""
    letters = "▁abcdefghijklmnopqrstuvwxyzR<>/"
    pieces = ["<unk>", "<s>", "</s>", *letters]
    return LlamaTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], **settings)


def gptj() -> GPT2Tokenizer:
    """A BOS token by name, which the tokenizer never writes."""
    _, vocabulary = byte_level([])
    return GPT2Tokenizer(vocab=vocabulary, merges=[])


def qwen() -> Qwen2Tokenizer:
    """No BOS token at all."""
    _, vocabulary = byte_level(["<|endoftext|>"])
    return Qwen2Tokenizer(vocab=vocabulary, merges=[])


def marked(single: str, **named: str) -> PreTrainedTokenizerFast:
    """Some other convention, written by a post-processor."""
    backend, vocabulary = byte_level(["[CLS]", "[SEP]", "[gMASK]", "<sop>"])
    special = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]", "[gMASK]", "<sop>")]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


KINDS = {
    "llama-3": (llama3(), ["<|begin_of_text|>"]),
    "llama-3, first revision": (llama3("$A"), []),
    "with EOS behind": (llama3("{bos} $A {eos}"), ["<|begin_of_text|>"]),
    "EOS alone": (llama3("$A {eos}"), []),
    "llama-2": (sentencepiece(add_bos_token=True), ["<s>"]),
    "llama-2 without": (sentencepiece(add_bos_token=False), []),
    "gpt-j": (gptj(), []),
    "qwen2.5": (qwen(), []),
    "two tokens": (marked("[gMASK] <sop> $A"), ["[gMASK]", "<sop>"]),
    "not called BOS": (marked("[CLS] $A [SEP]", cls_token="[CLS]", sep_token="[SEP]"), ["[CLS]"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_begins_as_the_tokenizer_begins_plain_text(kind: str) -> None:
    tokenizer, begun = KINDS[kind]
    encoder = Encoder(tokenizer)
    before = tokenizer.convert_ids_to_tokens(list(encoder.lead))
    assert before == begun
    plain = tokenizer("Rome lies in")["input_ids"]
    ids = encoder.prompt_ids("Rome lies in")
    assert plain[: len(ids)] == ids and ids[: len(begun)] == list(encoder.lead)
    assert encoder.prompting == {"template": "bare", "bos": bool(begun)}
    assert encoder.text_ids("Rome lies in") == ids
    # An EOS of the tokenizer stands behind no prompt, and nothing of it in an answer.
    sample = encoder.sample("Rome lies in", "in")
    assert sample.input_ids[: len(ids)].tolist() == ids
    assert tokenizer.decode(sample.answer_ids).strip() == "in"


@pytest.mark.parametrize("kind", KINDS)
def test_the_grid_may_say_otherwise(kind: str) -> None:
    tokenizer, begun = KINDS[kind]
    bare = tokenizer("Rome", add_special_tokens=False)["input_ids"]
    assert Encoder(tokenizer, bos=False).prompt_ids("Rome") == bare
    if begun or tokenizer.bos_token_id is not None:
        own = list(written_around(tokenizer)[0]) or [tokenizer.bos_token_id]
        assert Encoder(tokenizer, bos=True).prompt_ids("Rome") == [*own, *bare]
    else:
        with pytest.raises(TokenizationError, match=r"bos: true, but the tokenizer of .* no BOS"):
            before_text(tokenizer, True)


def test_a_tokenizer_of_few_words_is_asked_for_one_that_it_knows() -> None:
    """It has no token for an unknown word, and refuses one."""
    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "quay": 2}, unk_token="<none>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.normalizer = normalizers.Lowercase()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    assert written_around(tokenizer) == ((), (1,))
    assert Encoder(tokenizer).prompt_ids("quay") == [2]


def test_a_template_that_writes_bos_is_not_told_to_leave_it_out() -> None:
    tokenizer = llama3()
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}: "
    assert Encoder(tokenizer, style="chat").prompting["bos"] is True
    with pytest.raises(TokenizationError, match=r"bos: false, but the chat template writes BOS"):
        Encoder(tokenizer, style="chat", bos=False)


def test_a_mark_of_turns_that_is_called_bos_is_none() -> None:
    """As SmolLM2's: every turn of its template begins with it, and no plain text does."""
    tokenizer = llama3("$A")
    tokenizer.chat_template = (
        "{% for m in messages %}<|begin_of_text|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
        "<|begin_of_text|>assistant\n"
    )
    for told in (None, False):
        encoder = Encoder(tokenizer, style="chat", bos=told)
        assert encoder.prompting["bos"] is False
        assert encoder.prompt_ids("Rome").count(tokenizer.bos_token_id) == 2


def test_perplexity_leaves_out_the_word_behind_bos_only() -> None:
    for bos in (None, False):
        model = EditableModel(tiny_model("llama"), tiny_tokenizer("llama"), ["down:1"], bos=bos)
        (sample,) = text_samples(model, ["w03 w04 w05"])
        assert (int(sample.labels[0]) == IGNORED) == (bos is None)
        assert len(sample) == (3 if bos is None else 2)


def test_the_files_of_a_checkpoint_say_it_without_its_weights(tmp_path: Path) -> None:
    for kind, (tokenizer, begun) in KINDS.items():
        folder = tmp_path / kind
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        loaded = AutoTokenizer.from_pretrained(folder)
        assert writes_bos(str(folder)) == bool(written_around(loaded)[0]) == bool(begun), kind
    bare = tmp_path / "no tokenizer"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    assert writes_bos(str(bare)) is None
    with pytest.raises(CheckpointError, match=r"it has no tokenizer \(tokenizer.json"):
        load_tokenizer(str(bare), bare)


def test_an_unreadable_tokenizer_is_named_with_the_place(tmp_path: Path) -> None:
    llama3().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"tokenizer.json: no valid JSON \(.*line \d+ col"):
        writes_bos(str(tmp_path))
    file.write_text('{"version": "1.0"}')
    with pytest.raises(CheckpointError, match="its tokenizer cannot be loaded"):
        writes_bos(str(tmp_path))


def test_published_models_know_their_answer() -> None:
    """As their tokenizers have it at the pinned revisions; the proxy models follow them."""
    assert {name: preset.bos for name, preset in PRESETS.items()} == {
        "llama-3-8b": True,
        "llama-3-8b-instruct": True,
        "mistral-7b-v0.3": True,
        "mistral-7b-instruct-v0.3": True,
        "gemma-2-9b": True,
        "gemma-2-9b-it": True,
        "gpt-j-6b": False,
        "qwen2.5-7b": False,
        "smollm2-135m": False,
        "smollm2-135m-hub": False,
        "llama-3.1-8b": True,
        "llama-3.1-8b-instruct": True,
        "qwen2.5-7b-instruct": False,
        "qwen3-8b-base": False,
        "qwen3-8b": False,
        "gemma-3-4b": True,
        "gemma-3-4b-it": True,
        "gemma-3-12b-it": True,
        "gemma-3-27b-it": True,
        "phi-4": False,
    }
    unusual = {n for n, p in PRESETS.items() if (p.family in BOS_FAMILIES) != p.bos}
    assert unusual == {"smollm2-135m", "smollm2-135m-hub"}  # llama, with GPT-2's tokenizer
