"""Data that spells a control token is encoded as the text it is, in every style, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from rledit.control_tokens import SPELLINGS
from rledit.editors.finetuning import prompt_end
from rledit.locate.subject import last_token
from rledit.records import Edit
from rledit.tokenization import Encoder, TokenizationError
from rledit.world.words import word_tokenizer
from tests.unit.rledit.test_bos import byte_level, llama3, sentencepiece

CONTROL = ["<s>", "</s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "[INST]"]
CHAT = "<|user|>{{ messages[0]['content'] }}<|end|>\n<|assistant|>\n"


def byte_pairs(template: str | None = None) -> PreTrainedTokenizerFast:
    """As Qwen's: control tokens that are special, and two that are not and yet are matched."""
    backend, _ = byte_level([])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens(
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<|endoftext|>",
            "additional_special_tokens": CONTROL,
        }
    )
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("<tool_call>"), AddedToken("harbour")])
    tokenizer.chat_template = template
    return tokenizer


def marks(scheme: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """As Llama-2's and Mistral's: a mark before the text, at its beginning or everywhere."""
    letters = sorted(set("▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,'?.:<>|/[]\n_"))
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", *CONTROL, *letters, "▁▁"])}
    backend = Tokenizer(models.BPE(vocabulary, [("▁", "▁")], unk_token="<unk>"))
    if scheme == "legacy":
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": CONTROL})
    tokenizer.chat_template = template
    return tokenizer


KINDS = {
    "bytes": byte_pairs,
    "first": lambda t=None: marks("first", t),
    "always": lambda t=None: marks("always", t),
    "legacy": lambda t=None: marks("legacy", t),
}
TEXTS = [
    "The <|endoftext|> of Rome",
    "<s>Rome lies in",
    "Rome</s>",
    "Rome <|end|><|assistant|> lies in",
    "[INST]Rome",
]


def controls(tokenizer: Any, ids: list[int]) -> list[str]:
    return [t for t in tokenizer.convert_ids_to_tokens(ids) if t in tokenizer.all_special_tokens]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_bare_data_holds_no_control_token(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]()
    encoder = Encoder(tokenizer)
    assert controls(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    for ids in (encoder.prompt_ids(text), encoder.text_ids(text)):
        assert controls(tokenizer, ids) == []
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    sample = encoder.sample("Rome lies in", f" {text}")
    assert tokenizer.decode(sample.answer_ids, skip_special_tokens=True).strip() == text
    (row,) = prompt_end(with_padding(encoder), [edit("Rome lies in", text)]).targets.tolist()
    assert controls(tokenizer, row) == []


def with_padding(encoder: Encoder) -> Encoder:
    if encoder.tokenizer.pad_token_id is None:
        encoder.tokenizer.pad_token = encoder.tokenizer.eos_token
    return encoder


def edit(prompt: str, target: str) -> Edit:
    return Edit(edit_id="e", prompt=prompt, target=target)


def test_tokens_that_are_matched_without_being_special_are_text_too() -> None:
    """And those that steer nothing stay what they are to the model."""
    encoder = Encoder(byte_pairs())
    spelled = encoder.tokenizer.convert_ids_to_tokens(encoder.prompt_ids("a <think> harbour"))
    assert "<think>" not in spelled and spelled[-1] == "harbour"
    plain = encoder.tokenizer.convert_ids_to_tokens(encoder.prompt_ids("a harbour"))
    assert plain == ["a", "Ġ", "harbour"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_in_a_chat_the_templates_control_tokens_stay(kind: str, text: str) -> None:
    """Or the row is refused, where the tokenizer cannot tell them apart."""
    tokenizer = KINDS[kind](CHAT)
    encoder = Encoder(tokenizer, style="chat")
    own = ["<|user|>", "<|end|>", "<|assistant|>"]
    plain = encoder.prompt_ids("Rome lies in")
    shown = encoder.rendered("Rome lies in").text
    assert plain == tokenizer(shown, add_special_tokens=False)["input_ids"]
    ids = encoder.prompt_ids(text)
    assert controls(tokenizer, ids) == own
    assert controls(tokenizer, encoder.sample(text, text).input_ids.tolist()) == own
    # What is not spelt has the tokens that it has by itself: the same but for what was put in.
    assert ids[0] == plain[0] and ids[-2:] == plain[-2:]
    mixed = encoder.sample("Rome lies in", "Oslo</s>")
    assert mixed.input_ids[: len(plain)].tolist() == plain
    assert controls(tokenizer, mixed.answer_ids.tolist()) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [None, CHAT, "Q: {{ messages[0]['content'] }}\nA:\n"])
def test_the_subject_is_found_behind_a_spelt_control_token(kind: str, template: str | None) -> None:
    encoder = Encoder(KINDS[kind](template), style="bare" if template is None else "chat")
    text = "The </s> <|end|> of Rome lies"
    ids = encoder.prompt_ids(text)
    place = last_token(encoder, text, text.index(" lies"))
    words = encoder.tokenizer.convert_ids_to_tokens(ids[: place + 1])
    assert "".join(words).replace("▁", "").endswith("Rome")


def test_a_tokenizer_without_tokens_for_it_refuses_the_row() -> None:
    encoder = Encoder(word_tokenizer(["Rome", "lies", "in", "Italy"], add_bos=True))
    assert len(encoder.prompt_ids("Rome <i> lies")) == 4  # a word it does not know is none
    message = (
        r"kb.json:3: 'Rome </s> lies' spells a control token \('</s>'\).*take it out of the row"
    )
    with pytest.raises(TokenizationError, match=message):
        encoder.sample("Rome </s> lies", "Italy", "kb.json:3")
    with pytest.raises(TokenizationError, match=r"kb.json:4: .*spells a control token \('<pad>'\)"):
        encoder.sample("Rome lies in", "<pad>", "kb.json:4")


@pytest.mark.parametrize("tokenizer", [llama3(), sentencepiece(add_bos_token=True)])
def test_a_spelt_bos_is_not_the_one_that_begins_the_prompt(tokenizer: Any) -> None:
    bos = tokenizer.bos_token
    ids = Encoder(tokenizer).prompt_ids(f"{bos}a {bos} b")
    assert ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in ids[1:]
    assert tokenizer.decode(ids[1:]).strip() == f"{bos}a {bos} b"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "<|endoftext|>",
            "<|begin_of_text|>",
            "<|im_end|>",
            "<｜end▁of▁sentence｜>",
            "<s>",
            "</s>",
        ),
        *(
            "</s>",
            "<unk>",
            "<pad>",
            "<eos>",
            "<bos>",
            "[SEP]",
            "[/INST]",
            "<end_of_turn>",
            "<think>",
        ),
        *("<<SYS>>", "<unused12>", "<extra_id_3>", "<0x0A>", "[gMASK]", "<tool_call>", "<think>"),
    ],
)
def test_the_usual_spellings_are_known_without_a_tokenizer(text: str) -> None:
    assert SPELLINGS.findall(f"Oslo{text} and") == [text]


@pytest.mark.parametrize("text", ["a < b > c", "<b>Oslo</b>", "[1]", "x|y|z", "<|>", "[sic]", "<3"])
def test_other_text_is_none(text: str) -> None:
    assert SPELLINGS.search(text) is None
