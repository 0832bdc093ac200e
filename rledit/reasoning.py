"""Thinking blocks of chat templates: the switch that leaves them out, and open blocks.

An answer belongs behind the thinking. Where a template opens the block itself and leaves it open,
whatever follows the prompt stands inside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

_STEMS = (
    "think", "thought", "reason", "reflect", "ponder", "deliberat", "contemplat", "introspect",
    "scratchpad", "monologue", "rationale", "brainstorm", "analysis", "思考", "推理", "思维",
)  # fmt: skip
_NONE = ("none", "off", "no_think", "nothink", "no_thinking", "disabled", "chat")
_CLOSING = ("end", "stop", "close")
# Names of blocks and turns in which an answer may stand.
_ANSWERS = frozenset({
    "answer", "response", "output", "final", "result", "reply", "completion", "assistant", "model",
    "bot", "ai", "gpt", "solution", "system", "user", "human", "header", "turn", "message",
    "channel", "start", "im", "s", "bos", "eos", "inst", "sys",
})  # fmt: skip
_TAG = re.compile(
    r"[<\[◁⟨【]+[|｜]?(?P<slash>/?)(?P<name>[^\s<>\[\]◁▷⟨⟩【】|｜/]{1,60})"
    r"(?:\s[^<>\[\]◁▷⟨⟩【】/]{0,80})?(?P<empty>/?)[|｜]?[>\]▷⟩】]+"
)
_CHANNEL = re.compile(r"<[|｜]?channel[|｜]?>\s*(?P<name>\w*)")
_HEADED = re.compile(r"(?:^|\n)[#*\s]*(?P<name>[^\n:：*#<>]{3,60}?)[*\s]*(?P<mark>[:：]?)[*\s]*$")
_STEP_BY_STEP = re.compile(r"(?i)let'?s think|let me think|step[- ]by[- ]step")


def switches(template: str) -> dict[str, Any]:
    """The variables of a chat template that leave the thinking out, with the values that do.

    They are called `enable_thinking` (Qwen3 and others), `thinking` (DeepSeek-V3.1, Granite),
    `reasoning`, `thinking_budget` and alike; `reasoning_effort`, `thinking_mode` and alike where
    the template compares them with a word for none.
    """
    found: dict[str, Any] = {}
    for name in sorted(_variables(template)):
        words = name.lower().split("_")
        if not any(word.startswith(("think", "reason")) for word in words):
            continue
        if {"budget", "tokens"} & set(words):
            found[name] = 0
        elif {"no", "disable", "skip", "without", "hide", "exclude"} & set(words):
            found[name] = True
        elif not {"content", "effort", "mode", "level", "text", "prompt", "history"} & set(words):
            found[name] = False
        elif (word := _word_for_none(template, name)) is not None:
            found[name] = word
    return found


def _word_for_none(template: str, name: str) -> str | None:
    """The text for "no thinking" that a template compares a variable with."""
    words = "|".join(_NONE)
    literal, variable = rf"(['\"])(?P<word>{words})\1", rf"\b{re.escape(name)}\b"
    compared = re.search(rf"{variable}\s*[!=]=\s*{literal}", template)
    compared = compared or re.search(rf"{literal}\s*[!=]=\s*{variable}", template)
    return compared["word"] if compared else None


@lru_cache(maxsize=32)
def _variables(template: str) -> frozenset[str]:
    """The names that a template is given from outside."""
    import jinja2.ext
    import jinja2.meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(extensions=[jinja2.ext.loopcontrols])
    # transformers' own mark of what the assistant says means nothing here.
    plain = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template)
    try:
        return frozenset(jinja2.meta.find_undeclared_variables(environment.parse(plain)))
    except jinja2.TemplateError:
        return frozenset(re.findall(r"\b\w*(?:think|reason)\w*\b", template))


def open_block(tail: str, told: str | None = None) -> str | None:
    """The block of thinking that a template opens behind the prompt and leaves open.

    Args:
        tail: What it writes behind the prompt, up to where the answer begins.
        told: What it writes there before an answer that is given; a block of any other name that
            only an answer to come stands in is one of thinking too. None: not known.

    Returns:
        Its mark as the template writes it; None where there is none.
    """
    named = _left_open(tail, _of_thinking)
    if named is not None:
        return named
    extra = tail if told is None else tail[_shared(tail, told) :]
    if told is not None and (other := _left_open(extra, lambda n: not _of_answers(n))):
        return other
    return _open_channel(tail) or _headed(extra)


def _left_open(text: str, counts: Callable[[str], bool]) -> str | None:
    """The last tag that counts and is not closed."""
    open_ = None
    for match in _TAG.finditer(text):
        name = match["name"].strip().lower()
        if not counts(name) or match["empty"]:
            continue
        closes = bool(match["slash"]) or any(w in _CLOSING for w in _words(name))
        open_ = None if closes else match[0]
    return open_


def _open_channel(tail: str) -> str | None:
    """A channel other than the one for answers, in templates that tell channels apart."""
    last = None
    for match in _CHANNEL.finditer(tail):
        last = match
    if last is None or "<|end|>" in tail[last.end() :]:
        return None
    name = last["name"].lower()
    return tail[last.start() :].strip() if _of_thinking(name) or name == "commentary" else None


def _headed(extra: str) -> str | None:
    """A heading such as ``Thought:``, or a request to think, at the very end."""
    line = extra.rstrip().rpartition("\n")[2]
    if _STEP_BY_STEP.search(line):
        return line.strip()
    match = _HEADED.search(extra.rstrip())
    if match is None or not _of_thinking(match["name"].lower()):
        return None
    return line.strip() if match["mark"] or line.lstrip()[:1] in "#*" else None


def _of_thinking(name: str) -> bool:
    return any(word.startswith(_STEMS) or word == "cot" for word in _words(name))


def _of_answers(name: str) -> bool:
    """Whether a name is of an answer, of whose turn it is, or of no word at all."""
    words = [word for word in _words(name) if word not in ("begin", "start", "end", "of", "id")]
    return not words or any(word in _ANSWERS for word in words)


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\W_▁]+", name) if word]


def _shared(one: str, other: str) -> int:
    """Length of the common beginning of two texts, cut at the end of a line or of a tag."""
    differing = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    length = next(differing, min(len(one), len(other)))
    if length == len(one):
        return length
    return max(one.rfind(mark, 0, length) for mark in "\n>]") + 1


def remedy(mark: str, tried: Mapping[str, Any]) -> str:
    """What is wrong with a template that leaves thinking open, and what to do."""
    settings = ", ".join(f"{name}={value}" for name, value in tried.items())
    switch = f"also with {settings}" if tried else "and it has no switch that leaves it out"
    return (
        f"opens a block of thinking behind the prompt ({mark!r}) and leaves it open, {switch}: "
        "every answer would be written and scored inside the model's thinking; take prompt_style "
        "plain, a checkpoint whose template does not, or a copy of this one whose "
        "chat_template.jinja closes the block (for <think>: </think> behind it)"
    )
