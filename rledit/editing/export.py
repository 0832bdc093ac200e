"""An edited model, taken away: as a checkpoint, as the exact change, or as a LoRA adapter.

Each form is written whole or not at all, and is read by the call that its ecosystem has for it:
`AutoModelForCausalLM.from_pretrained`, safetensors' `load_file`, `PeftModel.from_pretrained`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rledit.editing.deltas import Delta
from rledit.editing.files import whole_folder, write_tensors
from rledit.errors import UserError
from rledit.families import is_transposed

Form = Literal["checkpoint", "delta", "lora"]
DELTA_FILE = "delta.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_EXACT = 1e-6  # relative to the change: below, an adapter is the change


class ExportError(UserError, ValueError):
    """An export that cannot be made as it is asked for; says what can."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        tensors: As PEFT names them.
        rank: Its rank.
        needed: The rank at which it would be exact.
        error: ‖change − adapter‖ over ‖change‖, over all matrices together.
    """

    tensors: Mapping[str, Tensor]
    rank: int
    needed: int
    error: float

    @property
    def exact(self) -> bool:
        """Whether it is the change, up to round-off."""
        return self.error <= _EXACT

    @property
    def n_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def write_checkpoint(
    model: nn.Module,
    tokenizer: Any,
    folder: Path,
    card: str = "",
    metadata: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a model that holds its edits, as transformers reads it.

    Args:
        model: The edited model, in the type it was loaded in.
        tokenizer: Its tokenizer.
        folder: Where to write; there must be nothing, or an empty folder.
        card: The model card (README.md).
        metadata: What else is known of it, for `edited.json`.
        files: More files beside it, by name.
    """
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    size += sum(map(len, (files or {}).values()))
    with whole_folder(folder, size) as made:
        model.save_pretrained(made)  # type: ignore[operator]
        tokenizer.save_pretrained(made)
        if card:
            (made / "README.md").write_text(card)
        for name, content in (files or {}).items():
            (made / name).write_bytes(content)
        if metadata is not None:
            (made / "edited.json").write_text(json.dumps(metadata, indent=1) + "\n")
    return folder


def write_delta(changes: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]) -> Path:
    """Write what was added to some parameters, in float64: the original plus the change, rounded
    to the model's precision, is the edited matrix bit by bit.

    Args:
        changes: Parameter → its change, in the layout of the parameter.
        path: The file.
        metadata: What is known of it, under ``facts`` in the file's own metadata.
    """
    whole = {name: value.double() for name, value in changes.items()}
    write_tensors(path, whole, {"facts": json.dumps(metadata)})
    return path


def exact_changes(
    model: nn.Module,
    current: Callable[[str], Tensor],
    original: Callable[[str], Tensor],
    names: list[str],
) -> dict[str, Tensor]:
    """Parameter → what edits have added to it, in float64 and in the layout of the parameter.

    Args:
        model: The model.
        current, original: The edited and the unedited matrix of a module (d_out x d_in).
        names: Edited modules.
    """
    found: dict[str, Tensor] = {}
    for name in names:
        change = current(name).double() - original(name).double()
        linear = model.get_submodule(name)
        found[f"{name}.weight"] = (change.T if is_transposed(linear) else change).contiguous()
    return found


def adapter_of(deltas: list[Delta], rank: int | None) -> Adapter:
    """The best adapter of a rank for some changes: by singular values, so no other of that rank is
    nearer.

    Args:
        deltas: The changes.
        rank: Its rank; None: the one at which it is exact.

    Raises:
        ExportError: There is no change, or the rank is none.
    """
    names = list(dict.fromkeys(name for delta in deltas for name in delta.terms))
    if not names:
        raise ExportError("no batch is in force, so there is nothing to export")
    if rank is not None and rank < 1:
        raise ExportError(f"--rank {rank}: an adapter has rank 1 at least")
    parts = {name: _singular(deltas, name) for name in names}
    needed = max(1, *(_numerical_rank(s) for _, s, _ in parts.values()))
    r = needed if rank is None else rank
    tensors: dict[str, Tensor] = {}
    left_out = torch.zeros((), dtype=torch.float64)
    size = torch.zeros((), dtype=torch.float64)
    for name, (u, s, v) in parts.items():
        k = min(r, len(s))
        root = s[:k].sqrt()
        a, b = torch.zeros(r, v.shape[1]), torch.zeros(u.shape[0], r)
        a[:k], b[:, :k] = (root[:, None] * v[:k]).float(), (u[:, :k] * root).float()
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
        difference = (u * s) @ v - b.double() @ a.double()
        left_out += difference.square().sum()
        size += s.square().sum()
    return Adapter(
        tensors=tensors,
        rank=r,
        needed=needed,
        error=float((left_out / size.clamp_min(1e-300)).sqrt()),
    )


def adapter_deltas(adapter: Adapter) -> Delta:
    """The change that an adapter makes."""
    from rledit.shift import LowRankShift

    terms: dict[str, tuple[LowRankShift, ...]] = {}
    for key, a in adapter.tensors.items():
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = adapter.tensors[key.replace("lora_A", "lora_B")]
            terms[name] = (LowRankShift(a, b.T.contiguous()),)
    return Delta(terms)


def write_adapter(
    model: nn.Module, adapter: Adapter, folder: Path, reference: str, card: str = ""
) -> Path:
    """Write an adapter as PEFT reads it: `PeftModel.from_pretrained(model, folder)`."""
    modules = sorted({key.split(".lora_")[0] for key in adapter.tensors})
    names = [name.removeprefix("base_model.model.") for name in modules]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": reference,
        "r": adapter.rank,
        "lora_alpha": adapter.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(is_transposed(model.get_submodule(n)) for n in names),
        "target_modules": names,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
    }
    with whole_folder(folder, adapter.n_bytes) as made:
        save_file(dict(adapter.tensors), made / ADAPTER_FILE, metadata={"format": "pt"})
        (made / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        if card:
            (made / "README.md").write_text(card)
    return folder


def _singular(deltas: list[Delta], name: str) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and Vᵀ of a module's whole change (d_out x d_in), in float64."""
    terms = [term for delta in deltas for term in delta.terms.get(name, ())]
    if any(term.left is None for term in terms) or sum(len(term.right) for term in terms) > min(
        terms[0].dense().shape
    ):
        whole = sum(delta.matrix(name) for delta in deltas if name in delta.terms)
        assert isinstance(whole, Tensor)
        return torch.linalg.svd(whole, full_matrices=False)
    # By the factors: a matrix of a large model need not be decomposed whole.
    left = torch.cat([term.left for term in terms if term.left is not None]).double()
    right = torch.cat([term.right for term in terms]).double()
    q_out, r_out = torch.linalg.qr(right.T)
    q_in, r_in = torch.linalg.qr(left.T)
    u, s, v = torch.linalg.svd(r_out @ r_in.T, full_matrices=False)
    return q_out @ u, s, v @ q_in.T


def _numerical_rank(singular: Tensor) -> int:
    """How many singular values matter at the precision of the masters."""
    if not len(singular) or not float(singular[0]):
        return 0
    tail = singular.square().flip(0).cumsum(0).flip(0).sqrt()
    return int((tail > 0.5 * _EXACT * tail[0]).sum())
