"""A space before an answer where its script has spaces between words, and only there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rledit.datasets import check_paths
from rledit.protocols.generation import normalised, within
from rledit.tokenization import Encoder, TokenizationError
from rledit.writing_systems import space_between, writes_spaces
from tests.unit.rledit.test_bos import byte_level, llama3


@pytest.mark.parametrize(
    ("prompt", "answer", "space"),
    [
        # A script alone.
        ("The ferry sails from", "Oban", True),
        ("Паром отправляется из", "Обана", True),
        ("한국의 수도는", "서울", True),
        ("नौका जाती है", "ओबान", True),
        ("العبارة تبحر من", "أوبان", True),
        ("挪威的首都是", "奥斯陆", False),
        ("ノルウェーの首都は", "オスロ", False),
        ("首都はどこですか", "オスロ", False),
        ("เมืองหลวงของนอร์เวย์คือ", "ออสโล", False),
        ("ເມືອງຫຼວງແມ່ນ", "ອອສໂລ", False),
        ("រដ្ឋធានីគឺ", "អូស្លូ", False),
        ("မြို့တော်မှာ", "အော်စလို", False),
        ("རྒྱལ་ས་ནི", "ཨོ་སི་ལོ", False),
        # Two of them: what stands before the answer decides.
        ("挪威的首都是", "Oslo", False),
        ("挪威独立于", "1905", False),
        ("挪威独立于", "1905年", False),
        ("The capital of Norway, in Chinese, is", "奥斯陆", True),
        ("谁创立了Microsoft", "比尔", False),
        ("他用英文写的名字是Norway", "Oslo", True),
        # A name in a sentence of the other script, by the space that the sentence puts.
        ("Who governs 東京?", "Koike", True),
        ('When was "Yubi" (指) sung?', "2012", True),
        ("The mayor of 東京 is", "Koike", True),
        ("Equinor 公司的总部位于", "Stavanger", True),
        # Punctuation.
        ("答案：", "奥斯陆", False),
        ("答案：", "Oslo", False),
        ("首都是（", "奥斯陆", False),
        ("首都是(", "奥斯陆", False),
        ("首都是:", "奥斯陆", False),
        ("问：挪威的首都在哪里？ A:", "奥斯陆", False),
        ("He shouted", "「待て」", False),
        ("The ferry (", "Oban", True),
        # No letter before the answer.
        ("1 + 1 =", "2", True),
        ("1 + 1 =", "二", False),
        ("It rained. 挪威的首都是", "Oslo", False),
    ],
)
def test_the_characters_that_meet_decide(prompt: str, answer: str, space: bool) -> None:
    assert space_between(prompt, answer) == space


def chinese() -> PreTrainedTokenizerFast:
    """Byte-level, with a token for two characters that belong to two words."""
    backend, _ = byte_level(["<s>"])
    spelled = ["".join(p[0] for p in _bytes(backend, text)) for text in "是奥"]
    vocabulary = backend.get_vocab()
    merges, pieces = [], []
    for text in (*spelled, "".join(spelled)):
        parts = list(text) if text in spelled else spelled
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = ["".join(parts[:2])]
            pieces.append(parts[0])
    vocabulary |= {p: len(vocabulary) + i for i, p in enumerate(dict.fromkeys(pieces))}
    merged = Tokenizer(models.BPE(vocabulary, merges))
    merged.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    merged.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=merged, bos_token="<s>")


def _bytes(backend: Tokenizer, text: str) -> list[str]:
    assert backend.pre_tokenizer is not None
    return list(backend.pre_tokenizer.pre_tokenize_str(text)[0][0])


def test_the_encoder_follows_it() -> None:
    encoder = Encoder(llama3())
    decode = encoder.tokenizer.decode
    assert decode(encoder.sample("挪威的首都是", "奥斯陆").answer_ids) == "奥斯陆"
    assert decode(encoder.sample("The capital is", "Oslo").answer_ids) == " Oslo"
    assert encoder.prompting == {"template": "bare", "bos": True}


def test_a_setting_goes_before_it() -> None:
    always = Encoder(llama3(), answer_space="always")
    assert always.tokenizer.decode(always.answer_ids("首都是", "奥斯陆")) == " 奥斯陆"
    never = Encoder(llama3(), answer_space="never")
    assert never.tokenizer.decode(never.answer_ids("The capital is", "Oslo")) == "Oslo"
    assert never.prompting["answer_space"] == "never"


@pytest.mark.parametrize(("setting", "lead"), [("auto", ""), ("always", " "), ("never", "")])
def test_in_a_chat_the_answer_begins_the_turn(setting: Any, lead: str) -> None:
    tokenizer = llama3()
    tokenizer.chat_template = "{{ messages[0]['content'] }}\n"
    encoder = Encoder(tokenizer, style="chat", answer_space=setting)
    assert tokenizer.decode(encoder.answer_ids("The capital is", "Oslo")) == f"{lead}Oslo"


def test_an_answer_that_would_merge_with_the_prompt_has_its_own_tokens() -> None:
    """Chinese has no space at which its tokens would end; the prompt's stay what they are."""
    tokenizer = chinese()
    together = tokenizer("首都是奥斯陆")["input_ids"]
    alone = tokenizer("首都是")["input_ids"]
    assert together[: len(alone)] != alone  # the case: 是 and 奥 are one token
    sample = Encoder(tokenizer).sample("首都是", "奥斯陆")
    assert sample.input_ids[: len(alone)].tolist() == alone
    assert sample.answer_ids.tolist() == tokenizer("奥斯陆")["input_ids"]
    with pytest.raises(TokenizationError, match="merges"):  # behind a template it is refused
        tokenizer.chat_template = "{{ messages[0]['content'] }}首都是"
        Encoder(tokenizer, style="chat").sample("挪威", "奥斯陆")


def test_written_answers_of_such_scripts_have_no_words_to_be_whole() -> None:
    assert within("奥斯陆", "挪威的首都是奥斯陆。") == 1
    assert within("奥斯陆", "挪威的首都是卑尔根。") == 0
    assert within("Oslo", "It is Oslos") == 0 and within("Oslo", "It is Oslo.") == 1
    assert normalised("奥斯陆。") == normalised("奥斯陆")
    assert writes_spaces("Oslo, 1905") and not writes_spaces("Oslo 奥")


def test_data_check_names_both_traps_with_rows_and_strings(tmp_path: Path) -> None:
    keys = ("subject", "prompt", "target_new", "ground_truth")
    rows = [
        ("Oban", "The ferry to Oban sails from", "Mull", "Tiree"),
        ("挪威", "挪威的首都是", "奥斯陆", "卑尔根"),
        ("Mull", "The ferry to Mull sails from", "Oban", "<|endoftext|>"),
        ("Iona", "The ferry to Iona sails from", "Oban</s>", "Mull"),
    ]
    file = tmp_path / "edits.json"
    made = [dict(zip(keys, row, strict=True)) | {"locality": {}, "portability": {}} for row in rows]
    file.write_text(json.dumps(made))
    lines, code = check_paths([file])
    assert code == 0
    assert (
        "  trap      control_token 2: a text spells a control token, such as <|endoftext|> or "
        "</s>: it is encoded as the text it is, never as the token; where it stands for no answer, "
        "leave it out; here <|endoftext|>, </s> (rows 3, 4)"
    ) in lines
    assert (
        "  trap      no_space_before_answer 1: the script of prompt and answer has no space "
        "between words: the answer follows the prompt directly (answer_space: always puts one) "
        "(rows 2)"
    ) in lines
    assert check_paths([file], strict=True)[1] == 1
