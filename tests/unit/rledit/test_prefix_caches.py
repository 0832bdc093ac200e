"""Memory of the caches is bounded by their budgets, and what was dropped is computed again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rledit.editors.rledit import RLEdit, RLEditConfig
from rledit.losses import row_losses
from rledit.model import EditableModel, Execution
from rledit.prefix_passes import PrefixPasses
from rledit.reward import final_states
from tests.unit.helpers.oracle import relative
from tests.unit.helpers.threaded_ranks import InStep
from tests.unit.helpers.tiny_models import HIDDEN, random_batches, tiny_model

DOUBLE = 8
SAMPLES = random_batches(1, 9)[0].edit.samples


def _model(execution: Execution | None = None) -> EditableModel:
    return EditableModel(tiny_model("llama"), None, ("down:2-3",), execution)


def _logits(model: EditableModel) -> Tensor:
    with torch.no_grad():
        return torch.cat(
            [model.prefix_cache.logits(micro_batch) for micro_batch in model.micro_batches(SAMPLES)]
        )


def _prefix_bytes(length: int) -> int:
    return 2 * length * HIDDEN * DOUBLE


def test_the_trunk_stays_within_its_budget(caplog: pytest.LogCaptureFixture) -> None:
    whole = sum(_prefix_bytes(len(s)) for s in SAMPLES)
    model = _model(Execution(cache_bytes=whole // 2, token_budget=24))
    expected = _logits(_model(Execution(token_budget=24)))
    for _ in range(3):
        assert relative(_logits(model), expected) < 1e-6
        held = [p for prefix in model.prefix_cache._cache.values() for p in prefix]
        assert 0 < sum(t.nbytes for t in held) == model.prefix_cache._cached <= whole // 2
        # A view of a padded micro-batch would hold all of the micro-batch's memory.
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in held)
    assert caplog.text.count("prefix cache is full") == 1
    assert model.prefix_cache.hits + model.prefix_cache.misses == 3 * len(SAMPLES)


def test_references_are_those_of_the_unedited_model() -> None:
    model = _model()
    before = final_states(model, SAMPLES)
    assert [len(f) for f in before] == [len(s.answer_ids) for s in SAMPLES]
    for name in model.modules:
        model.weights.set(name, 1.5 * model.weights.read(name))
    with model.weights.unedited():
        assert relative(torch.cat(final_states(model, SAMPLES)), torch.cat(before)) < 1e-6
    assert relative(_logits(model).log_softmax(-1), _logits(_model()).log_softmax(-1)) > 1e-3


def _editor(model: EditableModel, depth: int) -> RLEdit:
    config = RLEditConfig(modules=("down:2-3",), initial_step=1e-3, rank=3, n_blocks=1, depth=depth)
    return RLEdit(model, config)


def test_a_window_records_its_prompts_and_forgets_the_others() -> None:
    model = _model()
    editor = _editor(model, depth=2)
    batches = random_batches(4, 4)
    for done, _ in enumerate(editor.train_batches(batches), start=1):
        window = batches[max(0, done - 2) : done]
        phases = [p for b in window for p in (b.edit, b.equivalent, b.unrelated)]
        assert set(model.prefix_cache._cache) == {s.key for p in phases for s in p.samples}
        held = sum(t.nbytes for prefix in model.prefix_cache._cache.values() for t in prefix)
        assert model.prefix_cache._cached == held


def test_a_sharded_model_records_a_batch_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every pass gathers the layers below; a whole model records edits by themselves."""
    passes: list[int] = []
    record = PrefixPasses._record

    def counted(of: PrefixPasses, ids: Tensor) -> Any:
        passes.append(len(ids))
        return record(of, ids)

    monkeypatch.setattr(PrefixPasses, "_record", counted)
    for access, parts in ((InStep(), [15, 15]), (None, [5, 10, 5, 10])):
        passes.clear()
        model = EditableModel(tiny_model("llama"), None, ("down:2-3",), None, access)
        for _ in _editor(model, depth=2).train_batches(random_batches(2, 5)):
            pass
        assert passes == parts


def test_training_logs_what_the_caches_found(caplog: pytest.LogCaptureFixture) -> None:
    model = _model()
    editor = _editor(model, depth=3)
    with caplog.at_level("INFO"):
        editor.train_step(random_batches(3, 4))
    assert "prefixes found" in caplog.text
    # Each prompt of the 9 phases of 4 is recorded once, as its batch enters the window; then edit
    # prompts are captured, unrelated ones run for their reference, and the reward sees two phases
    # of 1, 2 and 3 batches.
    assert model.prefix_cache.misses == 4 * 9
    assert model.prefix_cache.hits == 4 * (3 + 3 + 2 * (1 + 2 + 3))


@pytest.mark.parametrize("kinds", ["both", "cross-entropy", "divergence"])
def test_row_losses_and_their_gradient(kinds: str) -> None:
    """Against PyTorch's own cross-entropy and divergence, differentiated by autograd."""
    generator = torch.Generator().manual_seed(0)
    first, second, upstream = (
        torch.randn(6, 11, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    kl_rows = torch.tensor([True, False, True, True, False, False])
    if kinds != "both":
        kl_rows = torch.full((6,), kinds == "divergence")
    labels = torch.randint(11, (6,), generator=generator)
    reference = second.log_softmax(-1)
    logits = first.clone().requires_grad_()
    found = row_losses(logits, labels, kl_rows, reference[kl_rows] if kl_rows.any() else None)
    (found * upstream[:, 0]).sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        (found * upstream[:, 0]).sum().backward()
    plain = first.clone().requires_grad_()
    entropy = torch.nn.functional.cross_entropy(plain, labels, reduction="none")
    divergence = torch.nn.functional.kl_div(
        plain.log_softmax(-1), reference, reduction="none", log_target=True
    ).sum(-1)
    expected = torch.where(kl_rows, divergence, entropy)
    (expected * upstream[:, 0]).sum().backward()
    assert relative(found, expected) < 1e-12
    assert logits.grad is not None
    assert plain.grad is not None
    assert relative(logits.grad, plain.grad) < 1e-12
