"""RLEdit's paper mode, MALMEN and MEND against the dense float64 reference implementation: shifts,
gradients, updates, edits after them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rledit.families import FAMILIES
from rledit.model import Execution
from rledit.tokenization import EditBatch
from tests.unit.helpers.oracle import check, make_pair
from tests.unit.helpers.tiny_models import (
    HIDDEN,
    INNER,
    add_outliers,
    add_twin_tokens,
    double_arithmetic,
    random_batches,
    tiny_model,
)
from tests.unit.helpers.turns import by_turns, marked

FEW, MANY = 5, 16
"""Edits per batch: fewer rows than the narrowest linear has inputs, more than the widest has."""
GROUP = 3
"""Loss group that divides neither, so that the last group of a batch is not full."""


# Two families that have nothing in common; what is special about the others, other tests show.
OFTEN = marked(FAMILIES, ("llama", "gptj"), ("gemma2",))
SIZES = ((FEW, "pretrained"), (MANY, "previous"), (FEW, "previous"), (MANY, "pretrained"))


@pytest.fixture(autouse=True)
def _double(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    double_arithmetic(monkeypatch)


def _rows(batch: EditBatch) -> int:
    return sum(len(sample.answer_ids) for sample in batch.edit.samples)


def _agree(pair: Any, batches: list[EditBatch]) -> None:
    """Edits from the start, two trajectories, and edits with what they learned."""
    untrained = pair.edit(batches)
    pair.reset()
    first = pair.train(batches)
    second = pair.train(batches[:1])
    trained = pair.edit(batches)
    for errors in (untrained, first, second, trained):
        check(errors, pair.tolerance)


@pytest.mark.parametrize(
    ("family", "size", "reference"),
    by_turns(FAMILIES, SIZES, long=0),
)
def test_paper_mode_is_the_textbook(family: str, size: int, reference: str) -> None:
    batches = random_batches(3 if size == FEW else 2, size, group_size=GROUP)
    rows = [_rows(batch) for batch in batches]
    assert max(rows) < HIDDEN if size == FEW else min(rows) > INNER
    assert size % GROUP
    _agree(make_pair(family, kl_reference=reference), batches)


@pytest.mark.parametrize("family", OFTEN)
def test_a_step_learned_raw_is_the_textbook(family: str) -> None:
    """As published; the other tests learn it in log form, whose gradient has the same scale."""
    _agree(make_pair(family, step_form="raw"), random_batches(3, FEW, group_size=GROUP))


@pytest.mark.parametrize(("family", "scale"), by_turns(FAMILIES, (1e2, 1e3)))
def test_outlier_dimensions(family: str, scale: float) -> None:
    model = tiny_model(family)
    add_outliers(model, scale)
    pair = make_pair(family, model=model, initial_step=5e-3 / scale)
    _agree(pair, random_batches(2, FEW))
    assert pair.book.condition > scale**2


def test_outlier_dimensions_with_many_edits() -> None:
    model = tiny_model("llama")
    add_outliers(model, 1e3)
    pair = make_pair("llama", model=model, initial_step=5e-6)
    _agree(pair, random_batches(2, MANY))
    assert pair.book.condition > 1e6


@pytest.mark.parametrize("family", OFTEN)
def test_near_duplicate_keys(family: str) -> None:
    model = tiny_model(family)
    add_twin_tokens(model, 1e-6)
    pair = make_pair(family, model=model, ridge=1e-6)
    _agree(pair, random_batches(2, 6, twins=True))
    assert pair.book.condition > 1e6


EXECUTIONS = {
    "one by one": Execution(token_budget=1),
    "small micro-batches": Execution(token_budget=24),
    "no cache": Execution(cache_bytes=0),
    "small cache": Execution(cache_bytes=4096),
}


@pytest.mark.parametrize(
    ("family", "how"),
    by_turns(["mistral", "gemma2", "gptj", "qwen2"], list(EXECUTIONS)),
)
def test_execution_changes_no_number(family: str, how: str) -> None:
    _agree(make_pair(family, execution=EXECUTIONS[how]), random_batches(2, FEW))


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 1},
        {"kl_reference": "previous"},
        {"clipping": "every_batch"},
        {"locality_gradient": "unedited"},
        *(
            pytest.param(change, marks=pytest.mark.long)
            for change in (
                {"depth": 3},
                {"regularisation_gradient": False},
                {"reg_coef": 0.0},
                {"decay": 1.0},
                {"max_grad_norm": 1e9},
                {"loc_coef": 0.0},
            )
        ),
    ],
    ids=str,
)
def test_one_changed_setting_is_noticed(change: dict[str, Any]) -> None:
    pair = make_pair("llama", fast=change)
    batches = random_batches(3, FEW)
    assert pair.train(batches)["gradient"] > 1e-4 > 1e4 * pair.tolerance
    pair.train(batches[:1])
    assert pair.edit(batches)["shift"] > 1e3 * pair.tolerance


def test_malmen_is_the_textbook_batch_by_batch() -> None:
    settings: dict[str, Any] = {"depth": 1, "decay": 1.0, "reg_coef": 0.0}
    pair = make_pair("llama", editor="malmen", **settings)
    batches = random_batches(2, FEW)
    check(pair.train_each(batches), pair.tolerance)
    check(pair.edit(batches), pair.tolerance)


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_mend_is_the_textbook_with_an_outer_product(family: str) -> None:
    settings: dict[str, Any] = {"depth": 1, "decay": 1.0, "reg_coef": 0.0}
    settings |= {"rule": "outer_product", "tokens": "all"}
    pair = make_pair(family, editor="mend", **settings)
    batches = random_batches(2, FEW)
    check(pair.train_each(batches), pair.tolerance)
    check(pair.edit(batches), pair.tolerance)


@pytest.mark.parametrize("editor", ["mend", "mend_rledit"])
def test_mend_with_trajectory_training(editor: str) -> None:
    settings: dict[str, Any] = {"rule": "outer_product", "tokens": "all"}
    trajectory: dict[str, Any] = {"transition": True, "optimise": "trajectory"}
    pair = make_pair(
        "llama", editor=editor, fast=trajectory if editor == "mend" else {}, **settings
    )
    _agree(pair, random_batches(2, FEW))
