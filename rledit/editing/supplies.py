"""Makes and caches, once per model, what editing needs beside the user's facts.

Everything is made from the unedited model and the facts that ship with the package: which of them
it knows, key covariance of their sentences, running statistics to begin with, calibrated steps, and
trained networks. It lies below the user's cache folder, by the model's fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from rledit.calibration import calibrate, needs_calibration
from rledit.editing.files import write_json, write_tensors
from rledit.editing.host import Host
from rledit.editing.known import Knowledge, Pool, asked_facts
from rledit.editing.methods import Method
from rledit.editing.training import trained_network
from rledit.editing.writing import Tell, silent
from rledit.editors.base import State
from rledit.editors.moment_editor import MomentEditor
from rledit.facts import RealFacts, sentences, table_hash
from rledit.locate.covariance import CovarianceFingerprint, KeyCovariance, called
from rledit.locate.output_gradients import accumulate_all, linear_of, width_of
from rledit.records import Edit

_SENTENCES = 1000  # of key covariance
_PART = 50
_WARM = 32  # edits of the running statistics that a first batch begins with
_TRIED = 16  # edits of a calibration
CHOICE = 1
"""Version of candidates and trials: another one chooses again."""
_KEPT = 95.0  # percent of unrelated answers that one pass has to leave alone


class Supplies:
    """What a model's editors need, kept in a folder.

    Args:
        host: The model.
        folder: Where it is kept; None: below the user's cache folder.
        tell: Told what takes long.
    """

    def __init__(self, host: Host, folder: Path | None = None, tell: Tell = silent) -> None:
        self._host = host
        self._root = folder
        self.tell = tell
        self._knowledge: dict[str, Knowledge] = {}
        self._covariance: dict[str, KeyCovariance] = {}
        self.training_facts: Sequence[Edit] | None = None
        """What networks are trained on; None: the facts that ship with the package."""

    @property
    def folder(self) -> Path:
        """The folder of this model."""
        style = json.dumps(self._host.prompting, sort_keys=True, default=str)
        name = hashlib.sha256(f"{self._host.fingerprint}{style}{table_hash()}".encode()).hexdigest()
        return (self._root or _cache_folder()) / name[:24]

    def knowledge(self, pool: Pool | str) -> Knowledge:
        """The facts of a pool that the unedited model knew."""
        if pool not in self._knowledge:
            path = self.folder / f"knows-{pool}-{len(asked_facts(pool))}.json"
            known = _read_json(path)
            if known is None:
                self.tell("asking the model what it knows, once")
            with self._host.unedited():
                made = Knowledge(self._host.open(), pool, known)  # type: ignore[arg-type]
            if known != made.known:
                self._keep(path, lambda: write_json(path, made.known))
            self._knowledge[pool] = made
        return self._knowledge[pool]

    def covariance(self, names: Sequence[str]) -> Mapping[str, KeyCovariance]:
        """Covariances over the shipped sentences, by the names of `covariances_of`."""
        lacking = [name for name in names if name not in self._covariance]
        for name in list(lacking):
            path = self.folder / f"covariance-{name}.safetensors"
            if (kept := _read_covariance(path)) is not None:
                self._covariance[name] = kept
                lacking.remove(name)
        if lacking:
            said = ", ".join(map(called, lacking))
            self.tell(f"{said} over {_SENTENCES:,} sentences, once")
            self._covariance |= self._summed(lacking)
        return {name: self._covariance[name] for name in names}

    def start(self, method: Method) -> State:
        """What an editor begins its first batch with: a trained network, warm statistics."""
        if method.trains:
            return self._kept_state(method, "network", self._trained)
        if issubclass(method.cls, MomentEditor):
            return self._kept_state(method, "warm", self._warmed)
        return {}

    def calibrated(self, method: Method) -> Method:
        """The method with its step as a number: one that leaves unrelated answers alone."""
        setting = method.cls.step_setting
        if setting is None or not needs_calibration(method.cls, method.config):
            return method
        path = self.folder / f"step-{_named(method)}.json"
        step = _read_json(path)
        if not isinstance(step, float):
            self.tell(f"calibrating the step of {method.editor}, once")
            step = self._step(method)
            self._keep(path, lambda: write_json(path, step))
        return replace(method, settings={**method.settings, setting: step})

    def chosen(self, settings: Mapping[str, Any] | None, floor: float) -> tuple[Method, str] | None:
        """The editor that was chosen for this model before, and why; None: none was."""
        kept = _read_json(self._choice_file(settings, floor))
        try:
            return (Method.of(kept["method"]), str(kept["why"])) if kept else None
        except (KeyError, TypeError):
            return None

    def keep_chosen(
        self, settings: Mapping[str, Any] | None, floor: float, method: Method, why: str
    ) -> None:
        """Keep the editor that was chosen for this model."""
        path = self._choice_file(settings, floor)
        self._keep(path, lambda: write_json(path, {"method": method.record(), "why": why}))

    def _choice_file(self, settings: Mapping[str, Any] | None, floor: float) -> Path:
        asked = json.dumps([CHOICE, dict(settings or {}), floor], sort_keys=True, default=list)
        return self.folder / f"choice-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.json"

    def real_edits(self, n: int) -> list[Edit]:
        """Edits of shipped facts, with known facts as locality where the model knows any."""
        knowledge = self.knowledge("choosing")
        edits = RealFacts().draw("validation", n, seed=0)
        probes = knowledge.statements(knowledge.apart_from(edits))
        if not probes:
            return edits
        return [replace(edit, locality=(probes[i % len(probes)],)) for i, edit in enumerate(edits)]

    def _step(self, method: Method) -> float:
        with self._host.unedited():
            opened = self._host.open(method.modules)
            edits = self.real_edits(_TRIED)
            found = calibrate(opened, method.editor, method.config, edits)
        quiet = [
            c for c in found.candidates if c.specificity_self is None or c.specificity_self >= _KEPT
        ]
        # Passes add up: two thirds of the largest step that leaves unrelated answers alone, or of
        # what one pass would be calibrated to.
        largest = max((c.step for c in quiet), default=found.step / 2)
        return 2 / 3 * min(largest, found.step)

    def _summed(self, names: Sequence[str]) -> dict[str, KeyCovariance]:
        with self._host.unedited():
            opened = self._host.open(list(dict.fromkeys(map(linear_of, names))))
            corpus = hashlib.sha256("\n".join(sentences()[:_SENTENCES]).encode()).hexdigest()
            found = {
                name: KeyCovariance(
                    CovarianceFingerprint(
                        model_hash=self._host.fingerprint, module=name, corpus_hash=corpus
                    ),
                    width_of(opened, name),
                    opened.device,
                )
                for name in names
            }
            texts = [opened.encoder.text_ids(text) for text in sentences()[:_SENTENCES]]
            for first in range(0, len(texts), _PART):
                accumulate_all(opened, texts[first : first + _PART], found)
        for name, moment in found.items():
            path = self.folder / f"covariance-{name}.safetensors"
            self._keep(path, partial(write_tensors, path, moment.tensors(), moment.metadata()))
        return found

    def _warmed(self, method: Method) -> State:
        with self._host.unedited():
            editor = method.cls(self._host.open(method.modules), method.config)
            assert isinstance(editor, MomentEditor)
            editor.propose(editor.encode(self.real_edits(_WARM)))
            return editor.state_dict()

    def _trained(self, method: Method) -> State:
        with self._host.unedited():
            opened = self._host.open(method.modules)
            return trained_network(opened, method, self.training_facts, self.tell)

    def _kept_state(self, method: Method, kind: str, make: Callable[[Method], State]) -> State:
        given = "" if self.training_facts is None else _digest(self.training_facts)
        path = self.folder / f"{kind}-{_named(method)}{given}.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError):
            pass
        state = make(method)
        self._keep(path, lambda: write_tensors(path, state))
        return state

    def _keep(self, path: Path, write: Callable[[], Any]) -> None:
        """Keep what can be made again; a folder that cannot be written to costs time only."""
        try:
            write()
        except OSError as error:
            self.tell(f"{path.parent} cannot be written ({error}); it is made again next time")


def _named(method: Method) -> str:
    """The part of a file's name that tells a method's settings but for its step."""
    return f"{method.editor}-{hashlib.sha256(method.key.encode()).hexdigest()[:12]}"


def _digest(edits: Sequence[Edit]) -> str:
    return "-" + hashlib.sha256(repr(tuple(edits)).encode()).hexdigest()[:8]


def _cache_folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return (base if base.is_absolute() else Path(tempfile.gettempdir())) / "rledit" / "editing"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _read_covariance(path: Path) -> KeyCovariance | None:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return KeyCovariance.load(tensors, file.metadata())
    except (OSError, SafetensorError, ValueError):
        return None
