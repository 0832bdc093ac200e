"""Base class of editors whose edits lie in a memory beside the model (see `rledit.overlay`)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from rledit.editors.base import Editor, State, TargetModules
from rledit.model import EditableModel
from rledit.overlay import Overlay
from rledit.tokenization import EditBatch


class OverlayEditor(Editor):
    """Writes edits into a memory, one at a time in the order of the stream, also inside a batch.

    Attributes:
        memory: The memory; `EditedWeights.restore` empties it.
    """

    target_modules: ClassVar[TargetModules] = "one_down"
    prefix_safe = True
    memory: Overlay
    work_kind = "remembered"

    def __init__(self, model: EditableModel, config: Any) -> None:
        super().__init__(model, config)
        if len(model.modules) != 1:
            raise ValueError(
                f"{self.name} keeps its memory at one linear, not {len(model.modules)}: "
                f"{model.modules}"
            )
        self.module = model.modules[0]
        self.memory = self.make_memory()

    @classmethod
    @abstractmethod
    def passes_of(cls, config: Any) -> float:
        """Passes with gradients over an edit's prompt that a configuration makes at most."""

    @classmethod
    @abstractmethod
    def bytes_of(cls, config: Any, shape: tuple[int, int], n_edits: int) -> float:
        """What the memory of a stream takes at most, at a linear of (d_in, d_out), in float32."""

    @abstractmethod
    def make_memory(self) -> Overlay:
        """The empty memory, on the model."""

    @abstractmethod
    def write(self, batch: EditBatch) -> dict[str, float]:
        """Write a batch into the memory; returns what was measured."""

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Write the batch's edits into the memory; no matrix changes."""
        metrics = self.write(batch)
        return {
            **metrics,
            "memory_entries": float(self.memory.entries),
            "memory_bytes": float(self.memory.n_bytes),
        }

    def state_dict(self) -> State:
        """The memory."""
        return self.memory.tensors()

    def load_state_dict(self, state: State) -> None:
        """Put a saved memory back."""
        if set(state) != set(self.state_dict()):
            raise ValueError(f"a state with {sorted(state)} is none of editor {self.name!r}")
        self.memory.clear()
        kept = self.memory.tensors().keys()
        self.memory.load({name: state[name].clone() for name in kept})


def kept_memory(editor: Editor) -> State:
    """What there is to keep of an editor that edits no matrix; nothing of any other."""
    return editor.state_dict() if isinstance(editor, OverlayEditor) else {}
