"""A whole run of a release on a real model, held against ours from text to final weights.

The set holds rows in stream order and what the release made of them. Everything between goes
through this project: reader, tokenizer contract, order and loss groups, training, editing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rledit.datasets import read_edits
from rledit.editors import Editor, editor_class
from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.editors.moment_editor import MomentEditor, Proposal
from rledit.model import EditableModel
from rledit.records import Edit
from rledit.tokenization import EditBatch, Encoder, Sample

from .ledger import Ledger
from .names import network_state
from .real_model import ModelUnavailableError, smollm2
from .score import KINDS, score_group
from .sets import REAL_FILE, GoldenSet
from .tolerances import (
    CHANGE_FROM_TEXT,
    EDIT_SHIFT_NORM,
    GRADIENT_NORM,
    SCORE_FROM_TEXT,
    SHIFT_FROM_TEXT,
    STEP_FROM_TEXT,
)

# What settings.json says beside the editor's own settings.
STREAM = ("editor", "modules", "batch_size", "n_batches", "bos", "sort", "scores")
PARTS = ("settings", "training", "network", "editing", "weights", "scores")
ENTRIES = 512
KIND_OF_SCORE = dict(zip(("efficacy", "generalization", "specificity"), KINDS, strict=True))


class RealJudge:
    """Judges one set of this kind.

    Args:
        golden: The set.

    Attributes:
        ledger: What was compared.
        parts: Names of the parts, each a test.
    """

    parts = PARTS

    def __init__(self, golden: GoldenSet) -> None:
        self.golden = golden
        self.ledger = Ledger(golden)
        self._judged = False

    def reason_to_skip(self, part: str) -> str | None:
        """Why the set cannot be judged here; None where it can."""
        if part == "settings":
            return None
        try:
            smollm2()
        except ModelUnavailableError as error:
            return str(error)
        return None

    def failures(self, part: str) -> list[str]:
        """What differs in a part."""
        if part == "settings":
            return self._settings_problems()
        self._judge()
        return self.ledger.failures.get(part, [])

    def coverage(self) -> list[str]:
        """Recorded values that were not compared."""
        if self.reason_to_skip("training") is not None:
            return []
        self._judge()
        compared = {name for _, name in self.ledger.consumed}
        return sorted(set(self.recorded) - compared)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The run's settings."""
        return json.loads((self.golden.root / "settings.json").read_text())

    @cached_property
    def recorded(self) -> dict[str, Tensor]:
        """The run's tensors."""
        return self.golden.load(REAL_FILE)

    def _settings_problems(self) -> list[str]:
        known = {f.name for f in fields(self._config_class)}
        problems = [
            f"settings.json: {k!r} is no setting" for k in self._own_settings.keys() - known
        ]
        if self.settings.get("sort", "longest first") != "longest first":
            problems.append(f"settings.json: sort {self.settings['sort']!r} is not known")
        return problems

    @property
    def _own_settings(self) -> dict[str, Any]:
        """The editor's settings; a method without training calls its step just that."""
        own = {k: v for k, v in self.settings.items() if k not in STREAM}
        names = {f.name for f in fields(self._config_class)}
        if "initial_step" in own and "initial_step" not in names:
            own["step"] = own.pop("initial_step")
        return own

    @property
    def _config_class(self) -> type:
        return editor_class(self.settings["editor"]).Config

    def _judge(self) -> None:
        if self._judged:
            return
        self._judged = True
        editor = self._editor()
        expected = self.settings.get("bos")
        begins = editor.model.encoder.prompting["bos"]
        if expected is not None and begins != expected:
            self.ledger.fail("training", f"prompts begin with BOS: {begins}, recorded {expected}")
        if isinstance(editor, HypernetworkEditor):
            self._train(editor)
        unedited = editor.model.weights.state_dict()
        batches = self._edit(editor)
        for name, weight in editor.model.weights.state_dict().items():
            self._sampled("weights", f"final/{name}", weight - unedited[name], CHANGE_FROM_TEXT)
        self._score(editor.model, batches)

    def _editor(self) -> MomentEditor:
        """The editor of the settings, its networks at the recorded start."""
        folder = smollm2()
        model = EditableModel(
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            AutoTokenizer.from_pretrained(folder),
            self.settings["modules"],
        )
        cls = editor_class(self.settings["editor"])
        editor = cls(model, cls.Config(modules=model.modules, **self._own_settings))
        assert isinstance(editor, MomentEditor)
        if isinstance(editor, HypernetworkEditor):
            self._load_start(editor)
        return editor

    def _load_start(self, editor: HypernetworkEditor) -> None:
        for name in [name for name in self.recorded if name.startswith("init/")]:
            match = re.fullmatch(r"init/(?:(\(\d+, \d+\))[./])?A(\d+)", name)
            chosen = [
                network
                for shape, network in editor.networks.items()
                if match is not None and match[1] in (None, str(shape))
            ]
            if match is None or len(chosen) != 1:
                self.ledger.fail("network", f"{name}: no network of ours starts from it")
                continue
            with torch.no_grad():
                chosen[0].blocks[int(match[2])].A.copy_(self.recorded[name])
            self.ledger.consume(REAL_FILE, [name])

    def _edits(self, file: str) -> list[list[Edit]]:
        """The rows of a file, in stream order, cut into batches."""
        size, n = self.settings["batch_size"], self.settings["n_batches"]
        edits = read_edits(self.golden.root / file).edits
        return [list(edits[i * size : (i + 1) * size]) for i in range(n)]

    def _train(self, editor: HypernetworkEditor) -> None:
        """One trajectory over the training rows."""
        norms: list[float] = []
        clipped: list[float] = []
        _after(editor, "propose", self._proposals("training", "train0", norms))
        _after(editor, "_clip", lambda norm: clipped.append(min(norm, editor.config.max_grad_norm)))
        editor.train_step([editor.encode(edits) for edits in self._edits("train.json")])
        self._listed("training", "train_shifts", norms, EDIT_SHIFT_NORM)
        self._listed("training", "gnorm", clipped, GRADIENT_NORM)
        for shape, network in editor.networks.items():
            for name, value in network_state(network).items():
                if (recorded := self.recorded.get(f"net/{shape}.{name}")) is not None:
                    ours = value.reshape(recorded.shape)
                    where = f"net/{shape}.{name}"
                    self.ledger.check("network", REAL_FILE, where, ours, recorded, STEP_FROM_TEXT)

    def _edit(self, editor: MomentEditor) -> list[tuple[list[Edit], EditBatch]]:
        """Edit the evaluation rows; returns the batches as text and tokens."""
        norms: list[float] = []
        _after(editor, "propose", self._proposals("editing", "edit0", norms))
        batches = [(edits, editor.encode(edits)) for edits in self._edits("evaluation.json")]
        for _, batch in batches:
            editor.edit(batch)
        self._listed("editing", "shifts", norms, EDIT_SHIFT_NORM)
        return batches

    def _proposals(self, part: str, prefix: str, norms: list[float]) -> Callable[[Proposal], None]:
        """Notes the norm of every proposal, and compares the first one module by module."""

        def note(proposal: Proposal) -> None:
            if not norms:
                for name, shift in proposal.shifts.items():
                    dense = shift.dense().detach()
                    self._sampled(part, f"{prefix}/shift/{name}", dense, SHIFT_FROM_TEXT)
            norms.append(float(proposal.squared_norm().detach().sqrt()))

        return note

    def _sampled(self, part: str, name: str, ours: Tensor, tolerance: Any) -> None:
        """Compare a matrix by its norm and the recorded entries."""
        entries, norm = self.recorded.get(f"{name}/entries"), self.recorded.get(f"{name}/norm")
        if entries is None or norm is None:
            self.ledger.fail(part, f"{name}: not recorded")
            return
        chosen = np.random.RandomState(0).choice(ours.numel(), len(entries), replace=False)
        sampled = ours.flatten()[torch.from_numpy(chosen)]
        check = self.ledger.check
        check(part, REAL_FILE, f"{name}/entries", sampled, entries, tolerance)
        check(part, REAL_FILE, f"{name}/norm", ours.norm().reshape(norm.shape), norm, tolerance)

    def _listed(self, part: str, name: str, ours: Sequence[float], tolerance: Any) -> None:
        if (recorded := self.recorded.get(name)) is not None:
            self.ledger.check(part, REAL_FILE, name, list(ours), recorded, tolerance)

    def _score(self, model: EditableModel, batches: Sequence[tuple[list[Edit], EditBatch]]) -> None:
        """The release's own metric over the stream, in the padded groups it scores in."""
        size = batches[0][1].edit.group_size
        choice = "choice" in self.settings["scores"]["metric"]
        for score, kind in KIND_OF_SCORE.items():
            found: list[Tensor] = []
            for edits, batch in batches:
                rows = _rivals(model.encoder, edits, kind)
                expected = getattr(batch, _PHASES[kind]).samples
                assert [s.key for s, _ in rows] == [s.key for s in expected]
                groups = (rows[i : i + size] for i in range(0, len(rows), size))
                found += [score_group(model, _padded(group, choice)) for group in groups]
            ours = 100 * float(torch.cat(found).mean())
            recorded = self.settings["scores"][score]
            self.ledger.check(
                "scores", "settings.json", score, ours, float(recorded), SCORE_FROM_TEXT
            )


_PHASES = dict(zip(KINDS, ("edit", "equivalent", "unrelated"), strict=True))


def _after(editor: Editor, method: str, note: Callable[[Any], Any]) -> None:
    """Show a method's results to `note`."""
    original = getattr(type(editor), method)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = original(editor, *args, **kwargs)
        note(result)
        return result

    setattr(editor, method, wrapped)


def _rivals(encoder: Encoder, edits: Sequence[Edit], kind: str) -> list[tuple[Sample, list[int]]]:
    """Samples of a prompt kind with the tokens of the answer they are chosen over, if any.

    Longest first: the release groups them so before it scores.
    """
    found: list[tuple[Sample, list[int]]] = []
    for edit in edits:
        near = edit.locality[0]
        prompt, answer, rival = {
            "edit_tuples": (edit.prompt, edit.target, edit.old_target),
            "equiv_tuples": (edit.rephrases[0], edit.target, edit.old_target),
            "unrel_tuples": (near.prompt, near.answer, edit.target),
        }[kind]
        rivals = [] if rival is None else encoder.answer_ids(prompt, rival)
        found.append((encoder.sample(prompt, answer), rivals))
    return sorted(found, key=lambda row: len(row[0]), reverse=True)


def _padded(group: Sequence[tuple[Sample, list[int]]], choice: bool) -> dict[str, Tensor]:
    """The release's tensors of a group; where it scores a choice, with the old answers.

    Old labels begin where the answer does and are padded with 0.
    """
    pad = torch.nn.utils.rnn.pad_sequence
    samples = [sample for sample, _ in group]
    tensors = {
        "input_ids": pad([s.input_ids for s in samples], batch_first=True),
        "attention_mask": pad([torch.ones_like(s.input_ids) for s in samples], batch_first=True),
        "labels": pad([s.labels for s in samples], batch_first=True, padding_value=-100),
    }
    if choice:
        olds = [
            torch.cat([s.labels[: int(s.answer_positions[0])], torch.tensor(ids)])
            for s, ids in group
        ]
        tensors["old_labels"] = pad(olds, batch_first=True)
    return tensors
