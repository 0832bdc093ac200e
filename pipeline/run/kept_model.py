"""The model that a worker keeps from one task to the next, so that it need not be loaded again.

A process holds one model at most: the one that its last task had. The next task on the same files,
device and precision takes it over; before any other is loaded, it is given up. When a task ends,
well or not, its edited matrices are put back bit by bit, and on a GPU all memory but the model's is
given back to the card, which other workers may share. A model is handed on only as it was
loaded: edited matrices are compared by their hash, all other tensors by where they lie and how
often they were written to, modules by their identity. One that differs is dropped with a warning
and loaded anew.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.inputs.checkpoints import weight_files
from pipeline.run.heap import collect_all
from rledit.lazy_torch import Tensor, nn, torch
from rledit.model import EditableModel

logger = logging.getLogger(__name__)

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@dataclass(eq=False)
class _Kept:
    """A loaded model and what it was like then.

    Attributes:
        key: Files, device and precision.
        model: The model.
        modules: Its modules by name.
        stamps: Of every parameter and buffer, where it lies and how often it was written to.
        hashes: Of every matrix that a task was to edit, by the name of its parameter.
        lent: What the task at work made of it.
    """

    key: tuple[Any, ...]
    model: nn.Module
    modules: dict[str, int]
    stamps: dict[str, tuple[int, int]]
    hashes: dict[str, str] = field(default_factory=dict)
    lent: EditableModel | None = None


_kept: _Kept | None = None
_keeping = False


@contextmanager
def keeping() -> Iterator[None]:
    """Let one model outlive the task that runs inside the context, which opens it by `take`."""
    global _keeping
    _keeping = True
    try:
        yield
    finally:
        _keeping = False
        _give_back()


def take(
    folder: Path, dtype: str, device: torch.device, load: Callable[[], nn.Module]
) -> nn.Module:
    """The model of a folder, as it was loaded; kept where that is wanted, see `keeping`.

    Args:
        folder: The model's files.
        dtype: Type of its parameters.
        device: Where it lies.
        load: Loads it there, where this process does not have it.
    """
    global _kept
    if not _keeping or (_kept is not None and _kept.lent is not None):
        return load()  # two that are open at a time share no weights
    key = (str(folder.resolve()), _stamps_of_files(folder), dtype, str(device))
    if _kept is not None and _kept.key == key:
        logger.debug("%s is at hand", folder)
        return _kept.model
    drop()
    model = load().eval().requires_grad_(False)
    _kept = _Kept(key, model, _modules(model), _stamps(model))
    return model


def lend(model: EditableModel) -> None:
    """Note what a task is about to edit; of an unedited model that `take` gave."""
    if _kept is None or _kept.model is not model.model:
        return
    for name in model.modules:
        path = f"{name}.weight"
        if path not in _kept.hashes:
            _kept.hashes[path] = _hash(model.weights.parameter(name))
    _kept.lent = model


def drop() -> None:
    """Give up the model that is kept, and its memory."""
    global _kept
    if _kept is None:
        return
    on_gpu = _on_gpu(_kept)
    _kept = None
    _free(on_gpu)


def _on_gpu(kept: _Kept) -> bool:
    return str(kept.key[-1]).startswith("cuda")


def _free(on_gpu: bool) -> None:
    """Give back the memory of what nothing refers to."""
    collect_all()
    if on_gpu:
        torch.cuda.empty_cache()


def _give_back() -> None:
    """Restore what was edited; drop the model where it is not what it was."""
    if _kept is None:
        return
    if _kept.lent is None:  # its task ended before it said what it edits: nothing is known of it
        if _problem(_kept, ()) is not None:
            drop()
        return
    lent, _kept.lent = _kept.lent, None
    try:
        lent.weights.restore()
        lent.detach()
        problem = _problem(_kept, lent.modules)
    except Exception as error:  # e.g. a device that an error has left unusable
        problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        logger.warning(
            "a task left its model changed (%s): it is dropped, and loaded again for the next one",
            problem,
        )
        drop()
        return
    for parameter in _kept.model.parameters():
        parameter.grad = None
        parameter.requires_grad_(False)
    # Where the task wrote, it has written back: the stamp is that of now.
    _kept.stamps = _stamps(_kept.model)
    if _on_gpu(_kept):
        _free(on_gpu=True)  # what PyTorch would keep of the task's tensors for later ones


def _problem(kept: _Kept, modules: Sequence[str]) -> str | None:
    """What is not as it was when the model was loaded; None where everything is."""
    if _modules(kept.model) != kept.modules:
        return "its modules are others"
    if any(getattr(m, hooks) for m in kept.model.modules() for hooks in _HOOKS):
        return "a module has a hook"
    edited = {f"{name}.weight" for name in modules}
    for path in edited:
        if _hash(kept.model.get_parameter(path)) != kept.hashes[path]:
            return f"{path} has another hash"
    now = _stamps(kept.model)
    for path, stamp in kept.stamps.items():
        if now.get(path) != stamp and path not in edited:
            return f"{path} was written to"
    return None if now.keys() == kept.stamps.keys() else "it has other tensors"


def _modules(model: nn.Module) -> dict[str, int]:
    return {name: id(module) for name, module in model.named_modules()}


def _stamps(model: nn.Module) -> dict[str, tuple[int, int]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: (tensor.data_ptr(), tensor._version) for name, tensor in tensors}


def _hash(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous()
    about = f"{plain.dtype} {tuple(plain.shape)}".encode()
    return hashlib.sha256(about + b"\0" + plain.view(torch.uint8).numpy().tobytes()).hexdigest()


def _stamps_of_files(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of the files that a model is loaded from."""
    files = [*weight_files(folder), folder / "config.json"]
    there = [(path, path.stat()) for path in files if path.is_file()]
    return tuple((path.name, found.st_size, found.st_mtime_ns) for path, found in there)
