"""Answers stand outside a model's thinking, whatever its template writes behind the prompt."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from rledit.reasoning import open_block, switches
from rledit.tokenization import Encoder, TokenizationError
from tests.unit.rledit.test_bos import byte_level

TURN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"


def chatting(generation: str, turn: str = TURN) -> PreTrainedTokenizerFast:
    backend, _ = byte_level(["<s>", "<|user|>", "<|assistant|>", "<|end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = (
        turn + "{% if add_generation_prompt %}<|assistant|>" + generation + "{% endif %}"
    )
    return tokenizer


@pytest.mark.parametrize(
    "opened",
    [
        "<think>{{ '\n' }}",
        "{{ '\n' }}<thinking>",
        "<reasoning>",
        "<thought>{{ '\n' }}",
        "<|begin_of_thought|>{{ '\n\n' }}",
        "<|START_THINKING|>",
        "<seed:think>",
        "[THINK]",
        "◁think▷",
        "<scratchpad>",
        "<｜thinking｜>",
        "<analysis type='long'>",
        "<|channel|>analysis<|message|>",
        "<|channel>thought{{ '\n' }}",
        "<inner_voice>{{ '\n' }}",  # a name of no known kind, before answers to come only
        "Thought:",
        "{{ '\n' }}### Reasoning{{ '\n' }}",
        "Let's think step by step.",
        "<think></think><think>",
    ],
)
def test_a_template_that_leaves_its_thinking_open_is_refused(opened: str) -> None:
    with pytest.raises(
        TokenizationError, match=r"opens a block of thinking behind the prompt .*no switch.*plain"
    ):
        Encoder(chatting(opened), style="chat")
    Encoder(chatting(opened))  # bare prompts see no template


@pytest.mark.parametrize(
    "closed",
    [
        "",
        "{{ '\n' }}",
        "<think>{{ '\n\n' }}</think>{{ '\n\n' }}",
        "</think>",
        "<think/>",
        "<|START_THINKING|><|END_THINKING|>",
        "<|begin_of_thought|>{{ '\n' }}<|end_of_thought|>",
        "◁think▷◁/think▷",
        "<|channel|>final<|message|>",
        "<answer>",
        "<|response|>",
        "### Response:{{ '\n' }}",
    ],
)
def test_other_templates_are_taken_as_they_are(closed: str) -> None:
    encoder = Encoder(chatting(closed), style="chat")
    text = encoder.rendered("Rome lies in").text
    assert text.startswith("<|user|>Rome lies in<|end|><|assistant|>")
    assert "without_thinking" not in encoder.prompting


def test_a_template_is_asked_to_leave_the_thinking_out() -> None:
    """Qwen3's way: undefined or true, the model thinks; false, an empty block is written."""
    qwen3 = (
        "{{ '\n' }}{% if enable_thinking is defined and enable_thinking is false %}"
        "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    )
    encoder = Encoder(chatting(qwen3), style="chat")
    assert encoder.rendered("Rome").text.endswith("<|assistant|>\n<think>\n\n</think>\n\n")
    assert encoder.prompting == {
        "template": "chat",
        "bos": False,
        "text": "<|user|>{}<|end|><|assistant|>\n<think>\n\n</think>\n\n",
        "without_thinking": {"enable_thinking": False},
    }


@pytest.mark.parametrize(
    ("variable", "test"),
    [
        ("enable_thinking", "enable_thinking | default(true)"),
        ("thinking", "thinking is not defined or thinking"),
        ("reasoning", "reasoning is not defined or reasoning"),
        ("thinking_budget", "thinking_budget is not defined or thinking_budget > 0"),
        ("disable_thinking", "not disable_thinking"),
        ("no_think", "not no_think"),
        ("reasoning_effort", "reasoning_effort is not defined or reasoning_effort != 'none'"),
        ("thinking_mode", 'not "off" == thinking_mode'),
    ],
)
def test_the_switch_has_many_names(variable: str, test: str) -> None:
    template = "{% if " + test + " %}<think>{% else %}<think></think>{% endif %}"
    encoder = Encoder(chatting(template), style="chat")
    assert list(encoder.prompting["without_thinking"]) == [variable]
    assert encoder.rendered("Rome").text.endswith("<think></think>")


def test_a_switch_that_closes_nothing_is_named() -> None:
    template = "{% if enable_thinking %}Think hard. {% endif %}<think>"
    with pytest.raises(TokenizationError, match="leaves it open, also with enable_thinking=False"):
        Encoder(chatting(template), style="chat")


def test_what_a_template_reads_of_its_messages_is_no_switch() -> None:
    template = (
        "{% set thinking_text = '' %}{% for m in messages %}{{ m.reasoning_content }}"
        "{{ thinking_text }}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        "{{ reasoning_effort }}"
    )
    assert switches(template) == {}
    assert open_block("<|assistant|>", "<|assistant|>") is None
