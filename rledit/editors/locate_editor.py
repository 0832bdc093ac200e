"""Common ground of the locate-then-edit methods: requests, value vectors, key covariance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from rledit.editors.base import Editor, Need, TargetModules
from rledit.editors.own_prefixes import fresh_prefix_cache
from rledit.editors.sphere import SphereSettings
from rledit.families import layer_index
from rledit.lazy_torch import Tensor, torch
from rledit.locate.contexts import Averaging, make_contexts
from rledit.locate.covariance import CovarianceError, KeyCovariance
from rledit.locate.keys import subject_keys
from rledit.locate.requests import FactToken, Request, make_requests
from rledit.locate.sites import BlockOutput
from rledit.locate.spread import Answer, LayerUpdate, in_order, spread
from rledit.locate.value import Confinement, ValueConfig, Values, optimise_values
from rledit.model import EditableModel
from rledit.tokenization import EditBatch


@dataclass(frozen=True, kw_only=True)
class LocateConfig(SphereSettings):
    """Settings that all locate-then-edit methods share.

    Attributes:
        modules: Target modules; one per layer, the one that writes into the residual stream.
        contexts: Context templates with one ``{}`` each, beside the bare prompt.
        fact_token: Where a fact is written: at the subject's last token, as published, or at the
            prompt's, for models that look facts up there.
        value_steps: Evaluations of the value vector's optimisation, one more than its Adam steps.
        value_lr: Its learning rate.
        value_decay: Weight of ‖δ‖ / ‖v‖².
        clamp: Largest norm of δ relative to the value's.
        kl_factor: Weight of the divergence on "{subject} is a".
        stop_loss: An edit's optimisation stops below this loss.
        edits_per_pass: Edits whose value vectors are optimised together; None: a batch's. It
            changes no number beyond round-off.
    """

    modules: tuple[str, ...]
    contexts: tuple[str, ...] = ()
    fact_token: FactToken = "subject_last"
    value_steps: int = 25
    value_lr: float = 0.1
    value_decay: float = 0.5
    clamp: float = 0.75
    kl_factor: float = 0.0625
    stop_loss: float = 0.05
    edits_per_pass: int | None = None

    def value_config(self) -> ValueConfig:
        """The part that concerns the value vector."""
        return ValueConfig(
            steps=self.value_steps,
            lr=self.value_lr,
            decay=self.value_decay,
            clamp=self.clamp,
            kl_factor=self.kl_factor,
            stop_loss=self.stop_loss,
            edits_per_pass=self.edits_per_pass,
        )


class LocateEditor(Editor):
    """An editor that looks up subjects and optimises value vectors."""

    needs: ClassVar[frozenset[Need]] = frozenset({"subject", "statistics"})
    target_modules: ClassVar[TargetModules] = "down"
    prefix_safe = True
    averaging: ClassVar[Averaging] = "groups"
    work_kind = "located"

    def __init__(self, model: EditableModel, config: Any) -> None:
        super().__init__(model, config)
        self.contexts = make_contexts(config.contexts)
        self.modules = in_order(model)
        self.covariances: dict[str, Tensor] = {}

    @classmethod
    def more_bytes_of(cls, shape: tuple[int, int]) -> int:
        """Bytes that it keeps of a linear (d_in, d_out) for a stream, beyond its key covariance and
        one more matrix of that size in float32: past keys, or a projection. Plans count them.
        """
        return 0

    @property
    def key_weights(self) -> Tensor:
        """(contexts,) weights of an averaged key."""
        return self.contexts.weights(self.averaging)

    def load_covariance(self, covariance: Mapping[str, KeyCovariance]) -> None:
        """Take C = E[k kᵀ] of every target module."""
        for name in self.modules:
            if name not in covariance:
                raise CovarianceError(
                    f"no key covariance of {name!r} was given; there are {sorted(covariance)}"
                )
            moment = covariance[name].mean().to(self.model.device)
            width = self.model.shape(name)[0]
            if len(moment) != width:
                raise CovarianceError(
                    f"key covariance of {name!r}: {len(moment)} features, the linear has {width} "
                    "inputs; it belongs to another model"
                )
            self.covariances[name] = moment
        self._moments_changed()

    def moment(self, name: str) -> Tensor:
        """C of a target module, in the precision it was summed in.

        Raises:
            CovarianceError: None was loaded.
        """
        if name not in self.covariances:
            raise CovarianceError(
                f"editor {self.name!r} needs the key covariance of {name!r}; call load_covariance"
            )
        return self.covariances[name]

    def _moments_changed(self) -> None:
        """Forget what was computed from earlier moments."""

    def requests(self, batch: EditBatch) -> list[Request]:
        """The batch's edits, tokenised in every context."""
        encoder, where = self.model.encoder, self.config.fact_token
        return make_requests(encoder, batch.edits, self.contexts, where)


class SpreadEditor(LocateEditor):
    """A method that writes value vectors into several layers, each with a linear system.

    Attributes:
        projects_each_layer: Where SPHERE projects: the update of each layer before the next one is
            solved, or the updates of all of them after the last one, as its release has it for
            MEMIT and those that follow it.
    """

    projects_each_layer: ClassVar[bool] = True

    @abstractmethod
    def solve(self, name: str, keys: Tensor) -> Answer:
        """The left factor of a layer's update."""

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Optimise the value vectors, then write them layer by layer."""
        requests = self.requests(batch)
        with fresh_prefix_cache(self.model):
            values = self.values(requests)
            updates = self.write(requests, values)
            self.after(requests, updates)
        return measured(values, updates)

    def values(self, requests: Sequence[Request], keep_trace: bool = False) -> Values:
        """Value vectors at the output of the highest edited layer."""
        last = layer_index(self.model.family, self.modules[-1])
        site = BlockOutput(self.model, last)
        confinement = self.confinement(requests)
        return optimise_values(
            self.model, requests, site, self.value_config(), keep_trace, confinement
        )

    def confinement(self, requests: Sequence[Request]) -> Confinement | None:
        """Directions that value vectors keep off; None as a rule."""
        return None

    def value_config(self) -> ValueConfig:
        """How value vectors are optimised."""
        found: ValueConfig = self.config.value_config()
        return found

    def targets(self, requests: Sequence[Request], values: Values) -> Tensor:
        """(edits, hidden) what the highest edited layer shall show."""
        return values.targets

    def write(self, requests: Sequence[Request], values: Values) -> list[LayerUpdate]:
        """Write the value vectors into the edited layers, behind SPHERE where it is asked for."""
        if self.sphere is None or self.projects_each_layer:
            return self.spread(requests, values)
        before = {name: self.model.weights.read(name).clone() for name in self.modules}
        return [self._projected(u, before[u.module]) for u in self.spread(requests, values)]

    def spread(self, requests: Sequence[Request], values: Values) -> list[LayerUpdate]:
        """Spread the value vectors over the edited layers."""
        targets = self.targets(requests, values)
        return spread(self.model, requests, targets, self.key_weights, self._solve)

    def _solve(self, name: str, keys: Tensor) -> Answer:
        answer = self.solve(name, keys)
        if self.sphere is None or not self.projects_each_layer:
            return answer
        pull = answer.pull
        return replace(
            answer,
            left=self.sphere.rows(name, answer.left),
            pull=None if pull is None else self.sphere.rows(name, pull.T).T,
        )

    def _projected(self, update: LayerUpdate, before: Tensor) -> LayerUpdate:
        """Put SPHERE's update of a layer in the place of the one that was added to `before`."""
        assert self.sphere is not None
        shift = self.sphere.shift(update.module, update.shift)
        self.model.weights.set(update.module, before)
        realised = self.model.weights.add(update.module, shift)
        return replace(update, shift=shift, realised=realised)

    def after(self, requests: Sequence[Request], updates: Sequence[LayerUpdate]) -> None:
        """What a method does once all layers are written."""

    def keys_now(self, requests: Sequence[Request]) -> dict[str, Tensor]:
        """Module → (edits, d_in) averaged keys of edits, on the weights as they are."""
        return subject_keys(self.model, requests, tuple(self.modules), self.key_weights)


def measured(values: Values, updates: Sequence[LayerUpdate]) -> dict[str, float]:
    """Metrics of a batch."""
    last = (values.evaluations - 1)[:, None]
    likelihood = values.losses[:, :, 1]
    norm = torch.stack([update.shift.squared_norm() for update in updates]).sum().sqrt()
    return {
        "edit_loss": float(likelihood[:, 0].mean()),
        "final_loss": float(likelihood.gather(1, last).mean()),
        "evaluations": float(values.evaluations.double().mean()),
        "shift_norm": float(norm),
        "condition": max(update.condition for update in updates),
        "jitter": max(update.jitter for update in updates),
        "realised_cosine": min(update.realised for update in updates),
    }
