"""Judge a locate set: every file of every family, then what is left over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rledit.editors.alphaedit import AlphaEdit
from rledit.editors.finetuning import prompt_end
from rledit.editors.locate_editor import SpreadEditor
from rledit.editors.memit import MEMIT
from rledit.locate.contexts import make_contexts
from rledit.locate.nullspace import null_space
from rledit.locate.requests import make_requests

from .allowed import is_allowed, reason_for
from .ledger import Ledger
from .locate_observe import Plan, feed_projections, observe, plan_of
from .locate_set import METHODS, FamilySet
from .sets import GoldenSet, integrity
from .spec import SettingsError
from .tolerances import EXACT, SPECTRUM, locate_tolerance, solve_tolerance


@dataclass
class LocateJudge:
    """Judges a set part by part; each part once."""

    golden: GoldenSet
    ledger: Ledger = field(init=False)
    _judged: set[str] = field(init=False, default_factory=set)
    _families: dict[str, FamilySet] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.golden)
        self._families = {n: FamilySet(self.golden, n) for n in self.golden.manifest["families"]}

    @property
    def parts(self) -> list[str]:
        """``FAMILY/FILE``, and ``FAMILY/requests``."""
        found: list[str] = []
        for name, family in self._families.items():
            found.append(f"{name}/requests")
            found += [f"{name}/{f.removesuffix('.safetensors')}" for f in family.entry["files"]]
        return found

    def failures(self, part: str) -> list[str]:
        """What went wrong in a part; judges it if it was not judged yet."""
        if part not in self._judged and not self.reason_to_skip(part):
            self._judged.add(part)
            name, _, stem = part.partition("/")
            family = self._families[name]
            try:
                if stem == "requests":
                    judge_requests(family, self.ledger)
                else:
                    judge_file(family, stem, self.ledger)
            except (SettingsError, KeyError, ValueError, StopIteration) as error:
                self.ledger.fail(part, f"{part}: {type(error).__name__}: {error}")
        return self.ledger.failures.get(part, [])

    def reason_to_skip(self, part: str) -> str | None:
        """Why a part is not compared, if all of it is allow-listed."""
        file = f"{part}.safetensors"
        reasons = {reason_for(file, name) for name in self.golden.names(file)}
        return reasons.pop() if len(reasons) == 1 else None

    def coverage(self) -> list[str]:
        """Broken files, and values no part consumed; judges every part first."""
        for part in self.parts:
            self.failures(part)
        return integrity(self.golden) + self.ledger.left_over()


def judge_file(family: FamilySet, stem: str, ledger: Ledger) -> None:
    """Compare everything a file holds."""
    part, file = f"{family.name}/{stem}", family.file(stem)
    recorded = family.load(stem)
    if stem in METHODS:
        _consume_settings(family, stem, ledger)
    plan = plan_of(family, stem, recorded)
    ours = observe(family, stem, plan, recorded)
    if stem == "stats":
        ledger.consume(file, ["corpus_ids", "corpus_mask"])
        _judge_null_space(family, ledger)
    for name, theirs in recorded.items():
        if (file, name) in ledger.consumed:
            continue
        if name not in ours:
            ledger.fail(part, f"{part}: {name}: nothing of ours answers to this tensor")
            continue
        ledger.check(part, file, name, ours[name], theirs, locate_tolerance(stem, name))
    if stem in METHODS and any(".upd" in name for name in recorded):
        _judge_updates(family, stem, plan, recorded, ledger)


def _consume_settings(family: FamilySet, stem: str, ledger: Ledger) -> None:
    """Mark what the method's editor was given, or what was checked."""
    name, key, _ = METHODS[stem]
    contexts = "context_templates_rome" if name == "rome" else "context_templates_memit"
    given = [f"hparams/{key}/{setting}" for setting in family.honoured(name)]
    given += [contexts, "layers", "family", "model_dir", "tokenizer_dir", "requests"]
    paths = ledger.golden.leaves(family.name)
    used = [p for p in paths if any(p == name or p.startswith(f"{name}/") for name in given)]
    ledger.consume(f"runs/{family.name}", used)


def _judge_null_space(family: FamilySet, ledger: Ledger) -> None:
    """Rank and eigenvalues around the threshold."""
    threshold = family.entry["hparams"]["AlphaEdit"]["nullspace_threshold"]
    part, source = f"{family.name}/stats", f"runs/{family.name}"
    for layer, numbers in family.entry["nullspace"].items():
        moment = family.stats[f"mom2.l{layer}"]
        values = torch.linalg.eigvalsh(moment.double())
        rank = null_space(moment, threshold, f"layer {layer}").rank
        ours: dict[str, Any] = {
            "dim": rank,
            "d": len(moment),
            "S_max": float(values[-1]),
            "S_just_above": float(values[rank]),
            "S_just_below": float(values[rank - 1]),
            "S_min": float(values[0]),
        }
        for name, theirs in numbers.items():
            limit = EXACT if name in ("dim", "d") else SPECTRUM
            ledger.check(part, source, f"nullspace/{layer}/{name}", ours[name], theirs, limit)


def _judge_updates(
    family: FamilySet, stem: str, plan: Plan, recorded: dict[str, Tensor], ledger: Ledger
) -> None:
    """The method's system alone: updates from the recorded keys and residuals.

    Where the recorded statistics are sampled, ours stand in, and the limit is that of whole runs.
    """
    part, file = f"{family.name}/{stem}", family.file(stem)
    editor = family.editor(stem)
    assert isinstance(editor, SpreadEditor)
    if isinstance(editor, AlphaEdit):
        feed_projections(family, editor)
    layers = family.entry["hparams"][METHODS[stem][1]]["layers"]
    for b in range(len(plan.batches)):
        for layer, name in zip(layers, editor.modules, strict=True):
            prefix = f"b{b}.l{layer}"
            if f"{prefix}.upd" not in recorded:
                continue
            left = editor.solve(name, recorded[f"{prefix}.K"]).left
            ours = recorded[f"{prefix}.resid"].double().T @ left
            ours = ledger.golden.sampled(file, f"{prefix}.upd", ours)
            label = f"{prefix}.upd from the recorded keys"
            theirs = recorded[f"{prefix}.upd"]
            limit = solve_tolerance(stem)
            if family.samples_statistics:
                limit = locate_tolerance(stem, f"{prefix}.upd")
            ledger.check(part, file, label, ours, theirs, limit)
        past = editor.past if isinstance(editor, MEMIT | AlphaEdit) else None
        if past is not None:
            state = past.state_dict()
            for layer, name in zip(layers, editor.modules, strict=True):
                rows = recorded[f"b{b}.l{layer}.K_cached"]
                state[f"past.{name}"] += rows.T @ rows
            editor.load_state_dict(state)


def judge_requests(family: FamilySet, ledger: Ledger) -> None:
    """Tokens and positions of every prompt."""
    part = f"{family.name}/requests"
    contexts = make_contexts(family.contexts("memit"))
    encoder = family.encoder
    n_prompts = len(contexts)
    for recorded in family.requests["requests"]:
        edit = family.edits[recorded["case_id"]]
        (request,) = make_requests(encoder, [edit], contexts)
        essence = f"{edit.subject} is a"
        rewriting = [s.input_ids.tolist() for s in request.rewriting]
        prompts = [t.replace("{}", edit.prompt) for t in contexts.all]
        positions = [*request.positions, len(request.essence) - 1]
        raw = prompt_end(encoder, [edit])
        ours: dict[str, Any] = {
            "target_ids": request.rewriting[0].answer_ids.tolist(),
            "target_ids_raw": raw.targets[0].tolist(),
            "z_prompt_ids": [*rewriting, encoder.prompt_ids(essence)],
            "z_lookup_idxs": positions,
            "key_texts": prompts,
            "key_ids": [encoder.prompt_ids(prompt) for prompt in prompts],
            "key_lookup_idxs": positions[:n_prompts],
            "cur_z_text": edit.prompt,
            "cur_z_ids": encoder.prompt_ids(edit.prompt),
            "cur_z_lookup_idx": positions[0],
        }
        for name, value in ours.items():
            if value != recorded[name]:
                where = f"{part}: case {recorded['case_id']}: {name}"
                ledger.fail(part, f"{where}: {value}, recorded {recorded[name]}")
        known = {*ours, "case_id", "prompt", "subject", "target_new", "z_prompts"}
        for name in recorded.keys() - known:
            if not is_allowed(f"{family.name}/requests.json", name):
                ledger.fail(part, f"{part}: {name}: nothing of ours answers to this value")
    ledger.consume(f"{family.name}/requests.json", [""])
