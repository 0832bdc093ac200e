"""A small model that has learnt some answers, and facts to write into it."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rledit.editing import Host, Session, Supplies
from rledit.editing.known import asked_facts
from rledit.editing.writing import silent
from rledit.facts.relations import RELATIONS, put
from tests.unit.helpers.knowing_model import byte_pair_tokenizer, learn, small_model

NAMES = ("Maribel", "Colonsay", "Tiree", "Oban", "Brodick", "Mallaig", "Ardrossan", "Largs")
STEP = {"step": 1e-3, "modules": ["down:0-1"]}
"""Settings of ultraedit with which this model is changed, and not ruined."""


def rows(n: int = 8, first: int = 0) -> list[dict[str, Any]]:
    """Facts: ferries and the harbours they are to sail from."""
    return [
        {
            "prompt": f"The ferry {NAMES[i % 8]} {i} sails from",
            "target": NAMES[(i + 3) % 8],
            "subject": f"{NAMES[i % 8]} {i}",
        }
        for i in range(first, first + n)
    ]


@lru_cache(maxsize=1)
def _learnt() -> tuple[nn.Module, Any]:
    known = [fact for pool in ("choosing", "telling") for fact in asked_facts(pool)[:12]]  # type: ignore[arg-type]
    lessons = [(put(RELATIONS[f.relation].statements[0], f.named), f.answer) for f in known]
    lessons += [(row["prompt"], NAMES[i % 8]) for i, row in enumerate(rows(24))]
    tokenizer = byte_pair_tokenizer([f"{p} {a}" for p, a in lessons])
    model = small_model("llama", tokenizer)
    learn(model, tokenizer, lessons, steps=150, enough=0.05)
    return model, tokenizer


def learnt(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """A model of one's own that knows some of the shipped facts, and its tokenizer."""
    model, tokenizer = _learnt()
    return copy.deepcopy(model).to(dtype), tokenizer


def small_session(folder: Path, dtype: torch.dtype = torch.float32, **named: Any) -> Session:
    """A session on such a model, its supplies below a folder."""
    host = Host(*learnt(dtype))
    supplies = Supplies(host, folder / "supplies", named.get("tell", silent))
    return Session(host, supplies=supplies, **named)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether all parameters are the same bit by bit."""
    return all(torch.equal(one[name], other[name]) for name in one)
