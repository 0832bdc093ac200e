"""Choice of a subject's occurrence: the slot of a template, or the first word of its own."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rledit.datasets import audit, check_paths, read_edits
from rledit.locate.contexts import Contexts
from rledit.locate.requests import make_requests
from rledit.locate.subject import subject_span
from rledit.occurrences import occurrences
from rledit.records import Edit
from rledit.tokenization import Encoder, TokenizationError
from tests.unit.helpers.knowing_model import byte_pair_tokenizer

NFD = "Co\u0302te E\u0301toile"  # the marks are characters of their own
NFC = unicodedata.normalize("NFC", NFD)
CHAT = (
    "{% for m in messages %}[Oban] {{ m['content'] }} [end]{% endfor %}"
    "{% if add_generation_prompt %}[Oban]{% endif %}"
)


def edit(prompt: str, subject: str, **more: Any) -> Edit:
    made = Edit(edit_id="e", prompt=prompt, target="Fife", subject=subject, source="facts.json:3")
    return replace(made, **more)


def counterfact(template: str, subject: str) -> dict[str, Any]:
    rewrite = {"prompt": template, "subject": subject, "relation_id": "P1"}
    rewrite |= {"target_new": {"str": "Fife"}, "target_true": {"str": "Bute"}}
    return {
        "requested_rewrite": rewrite, "paraphrase_prompts": [], "neighborhood_prompts": [],
    }  # fmt: skip


def mquake(template: str, subject: str) -> dict[str, Any]:
    rewrite = counterfact(template, subject)["requested_rewrite"]
    return {"requested_rewrite": [rewrite], "questions": [], "new_answer": "Fife"}


@pytest.mark.parametrize("write", [counterfact, mquake])
@pytest.mark.parametrize(
    ("template", "subject", "before"),
    [
        ("Unlike the ferry Oban, {} lies in", "Oban", "Unlike the ferry Oban, "),
        ("{}, not the ferry Oban, lies in", "Oban", ""),
        ("Obanmore and pre-{} lie in", "Oban", "Obanmore and pre-"),
        ("Of Oban and {}", " Oban ", "Of Oban and  "),
        ("Near Oban: sub{}ite lies in", "Oban", "Near Oban: sub"),
    ],
)
def test_the_slot_of_a_template_is_the_place(
    write: Any, template: str, subject: str, before: str
) -> None:
    (made,) = read_edits("f.json", rows=[write(template, subject)]).edits
    start, end = subject_span(made)
    assert (made.prompt[:start], made.prompt[start:end]) == (before, "Oban")


@pytest.mark.parametrize("chat", [False, True])
def test_the_token_edited_is_the_slots_in_every_context_and_in_a_chat(chat: bool) -> None:
    row = counterfact("Unlike the ferry Oban, {} lies in", "Oban")
    (made,) = read_edits("f.json", rows=[row]).edits
    contexts = Contexts(("Oban is far. {}",))
    texts = [f"Oban is far. {made.prompt} Fife", "Oban is a", "[Oban] [end]"]
    tokenizer = byte_pair_tokenizer(texts)
    tokenizer.chat_template = CHAT if chat else None
    encoder = Encoder(tokenizer, style="chat" if chat else "bare")
    (request,) = make_requests(encoder, [made], contexts)
    asked = [made.prompt, f"Oban is far. {made.prompt}"]
    for prompt, key, position in zip(asked, request.keys, request.positions, strict=True):
        head = "[Oban] " if chat else ""
        seen = tokenizer.decode(key.input_ids[1:])
        assert seen == head + prompt.removesuffix(" lies in")
        assert position == len(key) - 1


@pytest.mark.parametrize(
    ("prompt", "subject", "places"),
    [
        ("Obanmore near Oban is", "Oban", ["Oban"]),
        ("Obanmore lies in", "Oban", []),
        (f"The ferry {NFD} is", NFC, [NFD]),
        (f"The ferry {NFC} is", NFD, [NFC]),
        ("The x\u0302 axis and x", "x", ["x"]),
        ("渡轮马里贝尔从哪里出发", "马里贝尔", ["马里贝尔"]),
        ("오반은 어디에", "오반", ["오반"]),
        (unicodedata.normalize("NFD", "오반은 어디에"), "오반", ["\u110b\u1169\u1107\u1161\u11ab"]),
        ("C++ and C++", "C++", ["C++", "C++"]),
        ("In Oban's harbour, Oban", "Oban", ["Oban", "Oban"]),
        ("oban is", "Oban", []),
    ],
)
def test_a_subject_is_a_word_whatever_the_unicode_form(
    prompt: str, subject: str, places: list[str]
) -> None:
    found = occurrences(prompt, subject)
    assert [prompt[a:b] for a, b in found] == places
    made = edit(prompt, subject)
    if places:
        assert subject_span(made) == found[0]
    assert audit([made]).count("subject_not_in_prompt") == (not places)
    assert audit([made]).count("subject_ambiguous") == (len(places) > 1)


def test_a_decomposed_subject_is_edited_at_its_last_mark() -> None:
    made = edit(f"The ferry of {NFD}\u0301 sails", NFC + "\u0301")
    tokenizer = byte_pair_tokenizer([made.prompt])
    encoder = Encoder(tokenizer)
    (request,) = make_requests(encoder, [made], Contexts())
    assert tokenizer.decode(request.keys[0].input_ids[1:]) == f"The ferry of {NFD}\u0301"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (edit("Obanmore lies in", "Oban"),
         "the subject 'Oban' occurs only inside other words of the prompt 'Obanmore lies in'; "
         "write it as it stands there, or leave the row out"),
        (edit("OBAN lies in", "Oban"),
         "the subject 'Oban' does not occur in, but for its upper and lower case, the prompt"),
        (edit("Oban’s Isle 6 lies in", "Oban's Isle\u00a06"),
         "the subject \"Oban's Isle\\xa06\" does not occur in, but for look-alike characters"),
        (edit("It lies in", "Oban"), "the subject 'Oban' does not occur in the prompt"),
        (edit("In Oban lies", "Oban", subject_span=(0, 4)),
         "the subject 'Oban' does not stand at characters 0 to 4 of the prompt 'In Oban lies'"),
    ],
)  # fmt: skip
def test_a_subject_that_is_not_there_says_why(wrong: Edit, message: str) -> None:
    with pytest.raises(TokenizationError) as caught:
        subject_span(wrong)
    assert str(caught.value).startswith(f"facts.json:3: {message}")


def test_data_check_lists_rows_whose_subject_stands_twice(tmp_path: Path) -> None:
    row = {
        "prompt": "The ferry Oban sails from", "target_new": "Fife", "subject": "Oban",
        "ground_truth": "Bute", "rephrase_prompt": "It rained. Oban sails from",
        "locality_prompt": "Tiree sails from", "locality_ground_truth": "Bute",
    }  # fmt: skip
    twice = {**row, "prompt": "Oban, in Oban, lies in"}
    (tmp_path / "flat.json").write_text(json.dumps([row, twice]))
    template = counterfact("Unlike the ferry Oban, {} lies in", "Oban")
    (tmp_path / "nested.json").write_text(json.dumps([template]))
    lines, _ = check_paths([tmp_path])
    assert [line for line in lines if "subject_" in line] == [
        "  trap      subject_ambiguous 1: the subject occurs more than once in the prompt, and no "
        "template says which one is meant: the first is edited (rows 2)"
    ]
