"""A model whose edits lie in a memory beside it, taken away: the unedited checkpoint, the memory,
and what opens both together.

`AutoModelForCausalLM.from_pretrained` alone reads the unedited model. `open_edited` puts the
memory's hooks on it; they then go with every call of the model, `generate` among them (greedy or
sampled, no beams).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor, nn

from rledit.editing.export import ExportError, Form, write_checkpoint
from rledit.editors import editor_class
from rledit.editors.overlay_editor import OverlayEditor
from rledit.model import EditableModel

MEMORY_FILE = "memory.safetensors"
RECORD_FILE = "memory.json"
LOADER_FILE = "load_edited.py"
_LOADER = '''"""Opens the model of this folder with its memory: `model, tokenizer = load_edited()`.

Needs the package rledit-at-scale. Without this, the folder is read as the unedited model.
"""

from pathlib import Path

from rledit.editing.memories import open_edited


def load_edited():
    """The edited model, as transformers has it, and its tokenizer."""
    opened = open_edited(Path(__file__).parent)
    return opened.model, opened.encoder.tokenizer


if __name__ == "__main__":
    model, tokenizer = load_edited()
    prompt = input("prompt: ")
    ids = tokenizer(prompt, return_tensors="pt")
    print(tokenizer.decode(model.generate(**ids, max_new_tokens=20)[0]))
'''
_CARD = """---
tags: [model-editing]
---
The weights of this folder are the **unedited** ones: edits of `{editor}` lie in a memory beside
them, `{memory}`. Open both with `{loader}`, or in Python:

```python
from rledit.editing.memories import open_edited
model = open_edited("FOLDER").model
```
"""


def refuse_form(editor: str, form: Form) -> None:
    """Refuse forms that hold changed matrices only.

    Raises:
        ExportError: The form is none that a memory goes with.
    """
    if form != "checkpoint":
        raise ExportError(
            f"{editor} changes no matrix: its edits lie in a memory beside the model, so there is "
            f"no {form} to write; take the form checkpoint, which writes the memory and a loader "
            "beside the unedited weights"
        )


def write_with_memory(
    model: nn.Module,
    tokenizer: Any,
    folder: Path,
    *,
    editor: str,
    config: Any,
    memory: Mapping[str, Tensor],
    prompting: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write an unedited model, a memory and their loader.

    Args:
        model: The unedited model, in the type it was loaded in.
        tokenizer: Its tokenizer.
        folder: Where to write; there must be nothing, or an empty folder.
        editor: Name of the editor that made the memory.
        config: The editor's configuration.
        memory: Its state, see `Editor.state_dict`.
        prompting: How prompts are put: keyword arguments of `EditableModel`.
        metadata: What else is known of it.
    """
    record = {"editor": editor, "settings": asdict(config), "prompting": dict(prompting)}
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in memory.items()}
    card = _CARD.format(editor=editor, memory=MEMORY_FILE, loader=LOADER_FILE)
    files = {
        MEMORY_FILE: save(own),
        RECORD_FILE: (json.dumps(record, indent=1) + "\n").encode(),
        LOADER_FILE: _LOADER.encode(),
    }
    return write_checkpoint(model, tokenizer, folder, card, metadata, files=files)


def open_edited(folder: str | Path, model: nn.Module | None = None) -> EditableModel:
    """Open what `write_with_memory` has written.

    Args:
        folder: The folder.
        model: The unedited model, where it is loaded already; None: it is read from the folder.

    Raises:
        ExportError: The folder holds no memory.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(folder)
    missing = [name for name in (MEMORY_FILE, RECORD_FILE) if not (folder / name).is_file()]
    if missing:
        raise ExportError(
            f"{folder}: {missing[0]} is not there, so this is no model with a memory; write one "
            "with rledit export CELL FOLDER"
        )
    record = json.loads((folder / RECORD_FILE).read_text())
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in record["settings"].items()}
    cls = editor_class(record["editor"])
    opened = EditableModel(
        model or AutoModelForCausalLM.from_pretrained(folder, dtype="auto"),
        AutoTokenizer.from_pretrained(folder),
        settings["modules"],
        **record["prompting"],
    )
    editor = cls(opened, cls.Config(**settings))
    if not isinstance(editor, OverlayEditor):
        raise ExportError(f"{folder}: {record['editor']} keeps no memory")
    editor.load_state_dict(load_file(folder / MEMORY_FILE))
    return opened
