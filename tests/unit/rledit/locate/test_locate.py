"""Subjects, contexts and value vectors, in every family, against plain whole-model passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rledit.families import FAMILIES
from rledit.locate.contexts import Contexts
from rledit.locate.keys import block_values, observe, stream_gain, subject_keys
from rledit.locate.losses import value_losses
from rledit.locate.requests import Request, make_requests
from rledit.locate.sites import BlockOutput, LinearOutput, Site
from rledit.locate.subject import last_token, subject_span
from rledit.locate.value import ValueConfig, optimise_values
from rledit.model import EditableModel, Execution
from rledit.records import Edit
from rledit.tokenization import Encoder, TokenizationError
from rledit.world import BOS_FAMILIES
from tests.reference import reference_values
from tests.unit.helpers.text_edits import random_edits, tiny_tokenizer
from tests.unit.helpers.tiny_models import double_arithmetic, tiny_model
from tests.unit.helpers.turns import by_turns

CONTEXTS = Contexts(("w01 w02 w03 w04 {}", "w05 {}"))
CONFIG = ValueConfig(steps=6, lr=0.5, decay=0.2, clamp=2.0, kl_factor=0.1)


def edit(prompt: str, subject: str | None, target: str = "Oslo") -> Edit:
    return Edit(edit_id="e", prompt=prompt, target=target, subject=subject, source="facts.json:17")


def byte_level(bos: bool) -> PreTrainedTokenizerFast:
    """Bytes with spaces inside tokens, as Llama-3, GPT-J and Qwen2 have it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<s>", "</s>", *alphabet, "Ġ" + "R", "ĠR" + "o", "ĠRo" + "m", "ĠRom" + "e"]
    merges = [("Ġ", "R"), ("ĠR", "o"), ("ĠRo", "m"), ("ĠRom", "e")]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _fast(tokenizer, bos)


def metaspace(bos: bool) -> PreTrainedTokenizerFast:
    """A mark in place of spaces, and one before the text, as Mistral and Gemma have it."""
    letters = sorted(set("▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,'?éß"))
    pieces = ["<s>", "</s>", "<unk>", *letters, "▁R", "▁Ro", "▁Rom", "▁Rome"]
    merges = [("▁", "R"), ("▁R", "o"), ("▁Ro", "m"), ("▁Rom", "e")]
    vocabulary = {p: i for i, p in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    return _fast(tokenizer, bos)


def _fast(tokenizer: Tokenizer, bos: bool) -> PreTrainedTokenizerFast:
    special = {"bos_token": "<s>"} if bos else {}
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **special)


KINDS = {
    "llama": byte_level,
    "gptj": byte_level,
    "qwen2": byte_level,
    "mistral": metaspace,
    "gemma2": metaspace,
    "gemma3_text": metaspace,
    "qwen3": byte_level,
    "phi3": byte_level,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("Rome lies in", "Rome"),
        ("The city of Rome lies in", "Rome"),
        ("Romeo of Rome lives in", "Rome"),
        ("In Rome's streets one speaks", "Rome"),
        ("The river near Großer Café, flows to", "Großer Café"),
        ("Where is Rome", "Rome"),
    ],
)
def test_the_token_found_ends_the_subject(family: str, prompt: str, subject: str) -> None:
    """The tokens up to the one found spell the prompt up to the subject's end."""
    encoder = Encoder(KINDS[family](family in BOS_FAMILIES))
    _, end = subject_span(edit(prompt, subject))
    position = last_token(encoder, prompt, end)
    ids = encoder.prompt_ids(prompt)
    decode = encoder.tokenizer.decode
    assert decode(ids[: position + 1], skip_special_tokens=True).strip() == prompt[:end]
    assert not decode(ids[:position], skip_special_tokens=True).strip().endswith(subject)
    assert (ids[0] == encoder.tokenizer.bos_token_id) == (family in BOS_FAMILIES)


def test_a_subject_is_found_as_a_word_of_its_own() -> None:
    assert subject_span(edit("Romeo of Rome lives in", "Rome")) == (9, 13)
    with pytest.raises(TokenizationError, match="'Rome' occurs only inside other words of the pro"):
        subject_span(edit("Romeo lives in", "Rome"))


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("Paris", "facts.json:17: the subject 'Paris' does not occur in the prompt 'Rome lies in'"),
        (None, "facts.json:17: the edit has no subject"),
        ("  ", "facts.json:17: the edit has no subject"),
    ],
)
def test_a_missing_subject_is_named_with_file_and_row(subject: str | None, message: str) -> None:
    encoder = Encoder(byte_level(True))
    with pytest.raises(TokenizationError, match=message):
        make_requests(encoder, [edit("Rome lies in", subject)], CONTEXTS)


def test_batches_without_text_are_refused() -> None:
    with pytest.raises(TokenizationError, match="need the text"):
        make_requests(Encoder(byte_level(True)), [], CONTEXTS)


def test_context_weights() -> None:
    assert CONTEXTS.weights("groups").tolist() == [0.5, 0.25, 0.25]
    assert CONTEXTS.weights("uniform").tolist() == pytest.approx([1 / 3] * 3)
    assert Contexts().weights("groups").tolist() == [1.0]


@pytest.mark.parametrize("template", ["no place", "{} and {}", "{}"])
def test_bad_contexts_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match="template|bare prompt"):
        Contexts((template,))


def setting(family: str, n: int = 4, budget: int = 4096) -> tuple[EditableModel, list[Request]]:
    model = EditableModel(
        tiny_model(family), tiny_tokenizer(family), ["down:1-2"], Execution(token_budget=budget)
    )
    return model, make_requests(model.encoder, random_edits(n), CONTEXTS)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_facts_can_be_written_at_the_prompts_last_token(family: str) -> None:
    encoder = Encoder(tiny_tokenizer(family))
    edits = random_edits(5)
    for request, made in zip(make_requests(encoder, edits, CONTEXTS, "last"), edits, strict=True):
        prompts = [template.replace("{}", made.prompt) for template in CONTEXTS.all]
        for prompt, position, key in zip(prompts, request.positions, request.keys, strict=True):
            assert key.input_ids.tolist() == encoder.prompt_ids(prompt)
            assert position == len(key) - 1
        assert request.essence.input_ids.tolist() == encoder.prompt_ids(f"{made.subject} is a")


def test_values_at_the_prompts_last_token_equal_plain_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    double_arithmetic(monkeypatch)
    model, _ = setting("llama")
    requests = make_requests(model.encoder, random_edits(4), CONTEXTS, "last")
    for kind in ("block", "last"):
        site, module = site_of(model, kind)
        found = optimise_values(model, requests, site, CONFIG)
        targets, _ = reference_values(model.model, requests, module, CONFIG)
        torch.testing.assert_close(found.targets, targets, rtol=1e-9, atol=1e-9)


def site_of(model: EditableModel, kind: str) -> tuple[Site, str]:
    """A site, and the module it stands for."""
    if kind == "block":
        return BlockOutput(model, 2), f"{model.family.layers}.2"
    if kind == "last":
        return BlockOutput(model, 3), f"{model.family.layers}.3"
    return LinearOutput(model, model.modules[-1]), model.modules[-1]


@pytest.mark.parametrize(("family", "kind"), by_turns(FAMILIES, ["block", "last", "linear"]))
def test_values_equal_plain_passes(family: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restarts, cached beginnings, sliding windows and shared passes change nothing."""
    double_arithmetic(monkeypatch)
    model, requests = setting(family)
    site, module = site_of(model, kind)
    # At the last layer δ reaches no answer unless the subject ends the prompt; a divergence's
    # gradient of pure round-off would then steer Adam.
    config = replace(CONFIG, kl_factor=0.0) if kind == "last" else CONFIG
    found = optimise_values(model, requests, site, config)
    targets, evaluations = reference_values(model.model, requests, module, config)
    torch.testing.assert_close(found.targets, targets, rtol=1e-9, atol=1e-9)
    assert found.evaluations.tolist() == evaluations.tolist()


def test_edits_below_the_loss_stop_and_leave_the_others_alone() -> None:
    model, requests = setting("llama", n=8)
    config = replace(CONFIG, steps=12, decay=0.01, clamp=20.0, stop_loss=4.3)
    site, module = site_of(model, "block")
    found = optimise_values(model, requests, site, config)
    targets, evaluations = reference_values(model.model, requests, module, config)
    assert found.evaluations.tolist() == evaluations.tolist()
    assert len(set(evaluations.tolist())) > 2
    torch.testing.assert_close(found.targets, targets, rtol=1e-6, atol=1e-6)


def test_edits_stop_soon_after_their_target_ranks_first() -> None:
    """Every second edit asks for what the model says anyway."""
    model = EditableModel(tiny_model("llama"), tiny_tokenizer("llama"), ["down:1-2"])
    edits = random_edits(6)
    for i in (1, 3, 5):
        ids = torch.tensor([model.encoder.prompt_ids(edits[i].prompt)])
        said = int(model.model(input_ids=ids).logits[0, -1, 4:].argmax()) + 4
        edits[i] = replace(edits[i], target=model.encoder.tokenizer.decode([said]))
    requests = make_requests(model.encoder, edits, Contexts())
    config = replace(CONFIG, stop_argmax=2)
    site, module = site_of(model, "block")
    found = optimise_values(model, requests, site, config)
    targets, evaluations = reference_values(model.model, requests, module, config)
    assert evaluations.tolist() == found.evaluations.tolist() == [6, 2, 6, 2, 6, 2]
    torch.testing.assert_close(found.targets, targets, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("budget", [4096, 40])
@pytest.mark.parametrize("size", [1, 3])
def test_values_do_not_depend_on_how_edits_share_passes(size: int, budget: int) -> None:
    model, requests = setting("mistral", n=5)
    together = optimise_values(model, requests, BlockOutput(model, 2), CONFIG)
    small, _ = setting("mistral", budget=budget)
    config = replace(CONFIG, edits_per_pass=size)
    apart = optimise_values(small, requests, BlockOutput(small, 2), config, keep_trace=True)
    torch.testing.assert_close(apart.targets, together.targets, rtol=1e-4, atol=1e-4)
    assert apart.trace is not None
    assert not bool(apart.trace[:, 0].any())


def test_value_losses_and_their_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(2, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
    labels = torch.tensor([3, 0, 6])
    weights = torch.rand(5, generator=generator, dtype=torch.float64)
    log_p = logits.log_softmax(-1)
    divergence = (log_p[3:].exp() * (log_p[3:] - reference)).sum(-1)
    expected = torch.cat([-log_p[:3].gather(1, labels[:, None])[:, 0], divergence])
    found = value_losses(logits, labels, reference)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), logits),
        torch.autograd.grad((expected * weights).sum(), logits),
    )


def test_a_value_that_diverges_names_the_edit() -> None:
    model, requests = setting("llama")
    with torch.no_grad():
        model.model.get_output_embeddings().weight.fill_(float("nan"))  # type: ignore[operator]
    with pytest.raises(ValueError, match="random.json:0: the loss of the value vector"):
        optimise_values(model, requests, BlockOutput(model, 2), CONFIG)


def test_a_change_of_the_stream_is_taken_back_through_a_norm() -> None:
    """Gemma-2 normalises what its MLP adds: the norm of u + r ⊙ gain points along n + r."""
    model, requests = setting("gemma2")
    module = model.modules[-1]
    gain = stream_gain(model, requests, module)
    assert gain is not None
    norm = model.model.get_submodule("model.layers.2.post_feedforward_layernorm")
    inputs = observe(model, [r.keys[0] for r in requests], [module]).outputs[module]
    wanted = 0.3 * torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0)).double()
    aim = norm(inputs) + wanted
    reached = norm(inputs + wanted * gain)
    cosine = torch.cosine_similarity(reached, aim)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=1e-5, atol=1e-5)
    assert not bool(torch.isclose(gain, torch.ones_like(gain), rtol=0.1).all())
    plain, others = setting("llama")
    assert stream_gain(plain, others, plain.modules[-1]) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_values_are_those_of_whole_prompts(family: str) -> None:
    model, requests = setting(family)
    module, layer = model.modules[0], model.model.get_submodule(f"{model.family.layers}.2")
    weights = CONTEXTS.weights("groups")
    ours = subject_keys(model, requests, [module], weights)[module]
    shown = block_values(model, requests, 2)
    seen: dict[str, torch.Tensor] = {}

    def keep_input(_: object, args: tuple[torch.Tensor], __: object) -> None:
        seen["key"] = args[0]

    def keep_output(_: object, __: object, output: object) -> None:
        whole = output[0] if isinstance(output, tuple) else output
        assert isinstance(whole, torch.Tensor)
        seen["value"] = whole

    model.linear(module).register_forward_hook(keep_input)
    layer.register_forward_hook(keep_output)
    for e, request in enumerate(requests):
        expected = torch.zeros_like(ours[e])
        for c, (sample, position) in enumerate(
            zip(request.rewriting, request.positions, strict=True)
        ):
            model.model(input_ids=sample.input_ids[None])
            expected += weights[c] * seen["key"][0, position]
            if c == 0:
                torch.testing.assert_close(
                    shown[e], seen["value"][0, position], rtol=1e-5, atol=1e-6
                )
        torch.testing.assert_close(ours[e], expected, rtol=1e-5, atol=1e-6)
