"""Prompts inside a chat template: what the model sees, where subjects stand, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from rledit.decoding import decode
from rledit.editors import EDITORS
from rledit.families import FAMILIES
from rledit.locate.contexts import Contexts
from rledit.locate.requests import make_requests
from rledit.locate.sites import BlockOutput
from rledit.locate.subject import last_token, subject_span
from rledit.locate.value import ValueConfig, optimise_values
from rledit.measurements.perplexity import text_samples
from rledit.model import EditableModel
from rledit.protocols import protocol
from rledit.records import Edit
from rledit.scoring import EditScore, Scorer
from rledit.stream import StreamScored, run_stream
from rledit.tokenization import Encoder, TokenizationError
from rledit.world import BOS_FAMILIES
from tests.reference import reference_values
from tests.unit.helpers.text_edits import equip, random_edits, tiny_tokenizer
from tests.unit.helpers.tiny_models import double_arithmetic, tiny_model
from tests.unit.helpers.turns import marked
from tests.unit.rledit.locate.test_locate import KINDS

# As the published tokenizers have it: Llama-3 and Gemma trim, Mistral adds a space, Qwen has no BOS
# and a system turn of its own.
HEADED = (
    "{% for m in messages %}<|start|>{{ m['role'] }}<|end|>{{ '\n\n' + m['content'] | trim }}"
    "<|eot|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>{{ '\n\n' }}"
    "{% endif %}"
)
BRACKETED = "[INST] {{ messages[0]['content'] }}[/INST]"
SYSTEM = "<|start|>system<|end|>You are a helpful assistant in Rome<|eot|>"
TEMPLATES = {
    "llama": "{{ bos_token }}" + HEADED,
    "mistral": "{{ bos_token }}" + BRACKETED,
    "gemma2": "{{ bos_token }}" + BRACKETED,
    "gemma3_text": "{{ bos_token }}" + BRACKETED,
    "qwen2": SYSTEM + HEADED,
    "qwen3": HEADED,
    "phi3": HEADED,
    "gptj": HEADED,
}
MARKS = ["<|start|>", "<|end|>", "<|eot|>", "[INST]", "[/INST]"]
TINY = "w00 {{ messages[0]['content'] }} w01{{ '\n' }}"
CONTEXTS = Contexts(("w05 w06 {}",))


def chatting(family: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A subword tokenizer as the family has it, with a chat template."""
    tokenizer = KINDS[family](family in BOS_FAMILIES)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.chat_template = TEMPLATES[family] if template is None else template
    return tokenizer


def encoder(family: str, template: str | None = None) -> Encoder:
    return Encoder(chatting(family, template), style="chat")


def plain_ids(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """The prompt's tokens as transformers itself gives them."""
    turn = [{"role": "user", "content": prompt}]
    found: list[int] = tokenizer.apply_chat_template(
        turn, add_generation_prompt=True, return_dict=False
    )
    return found


def tiny_chat(family: str, **settings: Any) -> EditableModel:
    tokenizer = tiny_tokenizer(family)
    bos = "{{ bos_token }}" if family in BOS_FAMILIES else ""
    tokenizer.chat_template = bos + TINY
    modules = ["down:1-2"]
    return EditableModel(tiny_model(family), tokenizer, modules, prompt_style="chat", **settings)


def edit(prompt: str, subject: str) -> Edit:
    return Edit(edit_id="e", prompt=prompt, target="Oslo", subject=subject, source="facts.json:17")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_what_transformers_makes_of_it(family: str) -> None:
    """One BOS where the family has one, and the answer directly behind the generation prompt."""
    chat = encoder(family)
    ids = chat.prompt_ids("Rome lies in")
    assert ids == plain_ids(chat.tokenizer, "Rome lies in")
    assert ids.count(chat.tokenizer.bos_token_id) == int(family in BOS_FAMILIES)
    sample = chat.sample("Rome lies in", " Italy ")
    assert sample.input_ids[: len(ids)].tolist() == ids
    assert chat.tokenizer.decode(sample.answer_ids).strip() == "Italy"
    text = chat.rendered("Rome lies in").text
    spelled = chat.tokenizer(f"{text}Italy", add_special_tokens=False)["input_ids"]
    assert [*sample.input_ids.tolist(), int(sample.labels[-1])] == spelled


def test_a_bos_that_the_template_leaves_out_is_put_before_it() -> None:
    chat = encoder("llama", HEADED)
    ids = chat.prompt_ids("Rome lies in")
    assert ids == [chat.tokenizer.bos_token_id, *plain_ids(chat.tokenizer, "Rome lies in")]
    assert chat.tokenizer.convert_ids_to_tokens(ids[: last_token(chat, "Rome lies in", 4) + 1])[
        -4:
    ] == ["R", "o", "m", "e"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("Rome lies in", "Rome"),
        ("The city of Rome lies in", "Rome"),
        ("In Rome's streets one speaks", "Rome"),
        ("  Where is Rome", "Rome"),
        ("The river near Großer Café, flows to", "Großer Café"),
    ],
)
def test_the_token_found_ends_the_subject_in_the_users_turn(
    family: str, prompt: str, subject: str
) -> None:
    """Also where the template itself names the subject before."""
    chat = encoder(family)
    _, end = subject_span(edit(prompt, subject))
    position = last_token(chat, prompt, end)
    ids, decode_ = chat.prompt_ids(prompt), chat.tokenizer.decode
    upto = decode_(ids[: position + 1], skip_special_tokens=True)
    assert upto.rstrip().endswith(prompt[:end].strip())
    assert not decode_(ids[:position], skip_special_tokens=True).rstrip().endswith(subject)
    assert decode_(ids[position + 1 :]).lstrip().startswith(prompt[end:].strip())


@pytest.mark.parametrize("family", FAMILIES)
def test_contexts_stand_in_the_users_turn(family: str) -> None:
    model = tiny_chat(family)
    made = random_edits(3)
    bos = [model.encoder.tokenizer.bos_token] if family in BOS_FAMILIES else []
    for request, source in zip(make_requests(model.encoder, made, CONTEXTS), made, strict=True):
        for sample, position, lead in zip(
            request.rewriting, request.positions, ([], ["w05", "w06"]), strict=True
        ):
            words = model.encoder.tokenizer.convert_ids_to_tokens(sample.input_ids)
            asked = [*bos, "w00", *lead, *source.prompt.split(), "w01"]
            assert words == [*asked, *source.target.split()[:-1]]
            assert words[position] == str(source.subject).split()[-1]
            assert position >= len(bos) + 1 + len(lead)
        said = model.encoder.tokenizer.convert_ids_to_tokens(request.essence.input_ids)
        assert said == [*bos, "w00", *str(source.subject).split()]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_values_equal_plain_passes_inside_the_template(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    double_arithmetic(monkeypatch)
    model = tiny_chat(family)
    requests = make_requests(model.encoder, random_edits(4), CONTEXTS)
    config = ValueConfig(steps=6, lr=0.5, decay=0.2, clamp=2.0, kl_factor=0.1)
    found = optimise_values(model, requests, BlockOutput(model, 2), config)
    module = f"{model.family.layers}.2"
    targets, _ = reference_values(model.model, requests, module, config)
    torch.testing.assert_close(found.targets, targets, rtol=1e-9, atol=1e-9)


def test_running_text_is_never_put_into_the_template() -> None:
    model = tiny_chat("llama")
    bare = Encoder(tiny_tokenizer("llama"))
    assert model.encoder.text_ids("w03 w04 w05") == bare.prompt_ids("w03 w04 w05")
    (sample,) = text_samples(model, ["w03 w04 w05"])
    assert sample.input_ids.tolist() == bare.prompt_ids("w03 w04 w05")[:-1]


def test_texts_are_written_behind_the_template() -> None:
    model = tiny_chat("llama")
    ids = torch.tensor([model.encoder.prompt_ids("w03 w04")])
    expected = int(model.model(input_ids=ids).logits[0, -1].argmax())
    assert decode(model, ["w03 w04"], 1) == [[expected]]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the tokenizer of .* has no chat template; take the instruction-tuned model"),
        ("{{ messages[0]['content'] | upper }}", "does not hold the prompt .* as it is"),
        ("{{ messages[0]['content'] * 2 }}", "does not hold the prompt .* as it is"),
        ("{{ raise_exception('a system turn is needed') }}", "refuses .*a system turn is needed"),
        ("{{ strftime_now('%d') }}{{ messages[0]['content'] }}", "writes the date of the day"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template: str | None, message: str) -> None:
    tokenizer = chatting("llama")
    tokenizer.chat_template = template
    with pytest.raises(TokenizationError, match=message):
        Encoder(tokenizer, style="chat")
    Encoder(tokenizer)


def test_a_prompt_that_the_template_changes_names_its_row() -> None:
    chat = encoder("llama", "{{ bos_token }}{{ messages[0]['content'] | replace('<b>', '') }}")
    chat.sample("Rome lies in", "Italy")
    with pytest.raises(TokenizationError, match=r"facts.json:3: .*does not hold the prompt '<b>"):
        chat.sample("<b>Rome lies in", "Italy", "facts.json:3")


def test_a_template_whose_end_merges_with_the_answer_is_refused() -> None:
    chat = encoder("llama", "{{ bos_token }}Q: {{ messages[0]['content'] }} A: ")
    with pytest.raises(TokenizationError, match=r"'Rome' merges .* end of the chat template, ' A"):
        chat.sample("Which city", "Rome", "facts.json:3")


def test_a_template_with_a_date_writes_the_same_one_every_day() -> None:
    dated = (
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d') %}{% endif %}"
    )
    chat = encoder("llama", dated + "{{ date_string }}: {{ messages[0]['content'] }}.")
    assert chat.rendered("Rome lies in").text == "26 Jul 2024: Rome lies in."


# A random model carries nothing from a subject to the end of a prompt: memit writes there.
STREAMED: dict[str, dict[str, Any]] = {
    "ft": {"lr": 0.05, "steps": 60},
    "memit": {
        "value_lr": 0.5,
        "value_decay": 1e-3,
        "value_steps": 60,
        "clamp": 20.0,
        "moment_weight": 1e-3,
        "fact_token": "last",
    },
    "ultraedit": {"step": 1e-3},
    "none": {},
}


@pytest.mark.parametrize("name", marked(STREAMED, list(STREAMED)[:2]))
def test_a_stream_is_edited_and_scored_through_the_template(name: str) -> None:
    model, edits = tiny_chat("llama"), random_edits(4)
    cls = EDITORS[name]
    editor = cls(model, cls.Config(modules=model.modules, **STREAMED[name]))
    equip(editor)
    scorer = Scorer(model, edits, [protocol("token_accuracy"), protocol("generation_contains")])
    before = efficacy(scorer.score(4))
    *_, last = run_stream(editor, edits, 4, [1], scorer)
    assert isinstance(last, StreamScored)
    after = efficacy(last.scores)
    if name == "none":
        assert after == before
    if name in ("ft", "memit"):
        assert all(after[p] >= before[p] + 30 for p in after)


def efficacy(scores: Sequence[EditScore]) -> dict[str, float]:
    """Mean efficacy by protocol."""
    found = {s.protocol: [x.efficacy for x in scores if x.protocol == s.protocol] for s in scores}
    return {name: sum(x or 0.0 for x in own) / len(own) for name, own in found.items()}
