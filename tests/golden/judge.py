"""Judge a hypernet set: every run and every group of unit vectors, then what is left over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.editors.moment_editor import MomentEditor

from .allowed import is_allowed, reason_for
from .ledger import Ledger
from .names import load_networks, moment_state, parameters_of
from .observe import Observer
from .score import success
from .sets import GoldenSet, integrity
from .spec import SettingsError, Spec
from .tolerances import KEYS_TIMES_SHIFT, UNCERTAIN, Tolerance, tolerance, uncertainty
from .units import UnitError, observe_units

METRICS = {"ES": "edit_tuples", "GS": "equiv_tuples", "LS": "unrel_tuples"}


@dataclass
class Judge:
    """Judges a set part by part; each part once."""

    golden: GoldenSet
    ledger: Ledger = field(init=False)
    _judged: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.golden)

    @property
    def parts(self) -> list[str]:
        """Runs, and ``RUN/GROUP`` for the groups of unit vectors."""
        found: list[str] = []
        for run, entry in self.golden.runs.items():
            if "settings" in entry:
                found.append(run)
            else:
                names = self.golden.names(f"{run}.safetensors")
                found += sorted({f"{run}/{name.split('/')[0]}" for name in names}) or [run]
        return found

    def failures(self, part: str) -> list[str]:
        """What went wrong in a part; judges it if it was not judged yet."""
        if part not in self._judged and not self.reason_to_skip(part):
            self._judged.add(part)
            run, _, group = part.partition("/")
            try:
                if "settings" in self.golden.runs[run]:
                    judge_run(Spec(self.golden, run), self.ledger)
                else:
                    judge_units(self.golden, run, group, self.ledger)
            except (SettingsError, UnitError, KeyError, ValueError) as error:
                self.ledger.fail(part, f"{part}: {type(error).__name__}: {error}")
        return self.ledger.failures.get(part, [])

    def reason_to_skip(self, part: str) -> str | None:
        """Why a part is not compared, if all of it is allow-listed."""
        run, _, group = part.partition("/")
        file = f"{run}.safetensors"
        names = [n for n in self.golden.names(file) if group and n.split("/")[0] == group]
        reasons = {reason_for(file, name) for name in names}
        return reasons.pop() if len(reasons) == 1 else None

    def coverage(self) -> list[str]:
        """Broken files, and values no part consumed; judges every part first."""
        for part in self.parts:
            self.failures(part)
        return integrity(self.golden) + self.ledger.left_over()


def judge_run(spec: Spec, ledger: Ledger) -> None:
    """Drive our editor through a run and compare everything the recording holds."""
    source = f"runs/{spec.name}"
    unknown = {n for n in ledger.golden.leaves(spec.name) if n.startswith("settings/")}
    ledger.consume(source, unknown & spec.known_settings())
    unknown -= spec.known_settings()
    unknown = {name for name in unknown if not is_allowed(source, name)}
    if unknown:
        raise SettingsError(f"settings this harness does not honour: {sorted(unknown)}")
    observer, before, after = perform(spec, ledger, ledger.golden.names(spec.file))
    compare_tensors(spec, ledger, observer)
    compare_numbers(spec, ledger, observer, before, after)
    compare_first_shift(spec, ledger, observer)
    if spec.trained:
        check_optimiser(spec, ledger)


class Oracle:
    """A run in float64, for quantities of which a float32 recording is itself uncertain.

    Args:
        spec: The run.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def of(self, name: str, kind: Tolerance) -> tuple[Tensor, float]:
        """A tensor in float64, and how far its recording may be from it."""
        return self._tensors[name], uncertainty(kind, self._condition)

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        # Files are noted as used by the run that is judged.
        apart = Ledger(self.spec.golden)
        return perform(self.spec, apart, (), torch.float64)[0].tensors

    @cached_property
    def _condition(self) -> float:
        """The largest condition number of KᵀK + λI over all steps and modules."""
        ridges = [v for n, v in self._tensors.items() if n.endswith("lamda.weight")]
        started = initial_networks(self.spec)
        ridges += [v for n, v in started.items() if n.endswith("lamda.weight")]
        least = min(float(ridge.exp().min()) for ridge in ridges)
        keys = [value for name, value in self._tensors.items() if "/keys/" in name]
        return max(float(torch.linalg.matrix_norm(k, 2)) ** 2 for k in keys) / least + 1


def perform(
    spec: Spec, ledger: Ledger, wanted: Iterable[str], dtype: torch.dtype = torch.float32
) -> tuple[Observer, dict[str, Tensor], dict[str, Tensor]]:
    """Train, edit and score; returns the observations and success before and after.

    Args:
        spec: The run.
        ledger: Where the files used are noted.
        wanted: Tensor names to observe beyond the cheap ones.
        dtype: Precision of all of it.
    """
    model = spec.model(dtype)
    ledger.consume(spec.model_file, ledger.golden.names(spec.model_file))
    ledger.consume(spec.config_file, [""])
    ledger.consume(spec.inputs_file, ledger.golden.names(spec.inputs_file))
    editor = spec.editor(model)
    assert isinstance(editor, MomentEditor)
    observer = Observer(editor, wanted)
    for shape, moments in editor.moments.items():
        for name, value in moment_state(moments).items():
            observer.tensors[f"init/net/{shape}.normalizer.{name}"] = value
    valid = spec.stream("valid")
    if spec.trained:
        start(spec, ledger, editor)
        observer.train(spec.stream("train").batches)
    before = success(model, valid)
    observer.edit(valid.batches)
    after = success(model, valid)
    for when, ratios in (("before", before), ("final", after)):
        for kind, values in ratios.items():
            observer.tensors[f"valid/{when}/succ/{kind}"] = values
    return observer, before, after


def start(spec: Spec, ledger: Ledger, editor: Any) -> None:
    """Load the recorded initial networks."""
    names = load_networks(editor.networks, initial_networks(spec))
    ledger.consume(spec.init_file(), [f"init/net/{name}" for name in names])


def initial_networks(spec: Spec) -> dict[str, Tensor]:
    """The recorded initial networks by parameter name."""
    recorded = spec.golden.load(spec.init_file())
    prefix = "init/net/"
    return {n.removeprefix(prefix): t for n, t in recorded.items() if n.startswith(prefix)}


def compare_tensors(spec: Spec, ledger: Ledger, observer: Observer) -> None:
    """Compare every tensor of the run's file."""
    if spec.file not in spec.golden.files:
        return
    started = initial_networks(spec) if spec.trained else {}
    oracle = Oracle(spec)
    for name, recorded in spec.golden.load(spec.file).items():
        if (spec.file, name) in ledger.consumed:
            continue
        if name not in observer.tensors:
            ledger.fail(spec.name, f"{spec.name}: {name}: nothing of ours answers to this tensor")
            continue
        origin = None
        if "normalizer" not in name and ("/net_after_step/" in name or "/final/net/" in name):
            # Adam moves parameters by about the learning rate: compare the movements.
            origin = started[name.rpartition("/")[2]]
        elif "/final/weight/" in name:
            origin = observer.editor.model.weights.original(name.rpartition("/")[2])
        limit = tolerance(name, spec.trained)
        ours = observer.tensors[name]
        exact: Callable[[], tuple[Tensor, float]] | None = None
        if limit in UNCERTAIN and "normalizer" not in name:
            exact = partial(oracle.of, name, limit)
        ledger.check(spec.name, spec.file, name, ours, recorded, limit, origin, exact)


def compare_numbers(
    spec: Spec,
    ledger: Ledger,
    observer: Observer,
    before: dict[str, Tensor],
    after: dict[str, Tensor],
) -> None:
    """Compare every number of the run's manifest entry."""
    numbers = dict(observer.numbers)
    last = len(numbers.get("grad_norm", []))
    for metric, kind in METRICS.items():
        numbers[f"metrics/{metric}"] = numbers[f"wandb/{last}/{metric}"] = after[kind].mean()
        numbers[f"before/{kind}"] = before[kind].mean()
        numbers[f"succ/{kind}"] = after[kind]
    source = f"runs/{spec.name}"
    for name, recorded in ledger.golden.leaves(spec.name).items():
        if name.startswith("settings/") or is_allowed(source, name):
            continue
        if name not in numbers:
            ledger.fail(spec.name, f"{spec.name}: {name}: nothing of ours answers to this number")
            continue
        limit = tolerance(name, spec.trained)
        ledger.check(spec.name, source, name, numbers[name], recorded, limit)


def compare_first_shift(spec: Spec, ledger: Ledger, observer: Observer) -> None:
    """K S of the first step, where a float32 primal solve and a float64 dual one agree best.

    The rounding of the recorded solve lies outside the row space of K, so this is sharper than
    comparing S. It asks for recorded keys and shifts; MEND solves nothing and agrees anyway.
    """
    first = "train/step0" if spec.trained else "valid/step0"
    recorded = spec.golden.load(spec.file) if spec.file in spec.golden.files else {}
    for module in spec.modules:
        keys = recorded.get(f"{first}/keys/{module}")
        shift = recorded.get(f"{first}/param_shift/{module}")
        if keys is None or shift is None:
            continue
        factors = (f"{first}/keys/{module}", f"{first}/param_shift/{module}")
        if any(spec.golden.is_sampled(spec.file, name) for name in factors):
            continue
        ours = keys @ observer.tensors[f"{first}/param_shift/{module}"]
        label = f"{first}/keys @ param_shift/{module}"
        # Consumes nothing new: both factors are compared on their own as well.
        ledger.check(spec.name, spec.file, label, ours, keys @ shift, KEYS_TIMES_SHIFT)


def check_optimiser(spec: Spec, ledger: Ledger) -> None:
    """Our optimiser, given the recorded clipped gradients, must give the recorded networks bitwise.

    One step per trajectory: the last gradient gives the final network. One step per batch: the
    chain of steps from the first one, as far as their gradients were recorded.
    """
    if spec.file not in spec.golden.files:
        return
    golden = spec.golden
    recorded = golden.load(spec.file)
    editor = spec.editor(spec.model())
    assert isinstance(editor, HypernetworkEditor)
    load_networks(editor.networks, initial_networks(spec))
    parameters = parameters_of(editor.networks)
    n_steps = len(spec.stream("train").batches)
    once = editor.config.optimise == "trajectory"
    for step in [n_steps - 1] if once else range(n_steps):
        prefix = f"train/step{step}/net_grad_postclip/"
        gradients = {n: recorded[prefix + n] for n in parameters if prefix + n in recorded}
        if not gradients or any(golden.is_sampled(spec.file, prefix + n) for n in gradients):
            return
        for name, parameter in parameters.items():
            given = gradients.get(name)
            parameter.grad = None if given is None else given.reshape(parameter.shape).clone()
        editor.optimiser.step()
        result = "train/final/net/" if once else f"train/step{step}/net_after_step/"
        for name, parameter in parameters.items():
            if result + name in recorded:
                ours = golden.sampled(spec.file, result + name, parameter.detach())
                ours = ours.reshape(recorded[result + name].shape)
                label = f"Adam on the recorded gradient, {result}{name}"
                ledger.equal(spec.name, label, ours, recorded[result + name])


def judge_units(golden: GoldenSet, run: str, group: str, ledger: Ledger) -> None:
    """Compare one group of unit vectors, and the numbers of the unit run."""
    part, file = f"{run}/{group}" if group else run, f"{run}.safetensors"
    if not golden.names(file):
        raise UnitError(f"run {run!r} has neither settings nor a file of unit vectors")
    tensors = golden.load(file)
    chosen = {n: t for n, t in tensors.items() if n.split("/")[0] == group}
    observed = observe_units(group, tensors)
    ledger.consume(file, observed.inputs & chosen.keys())
    observed.compare(part, file, chosen, golden.leaves(run), ledger)
