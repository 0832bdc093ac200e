"""Drive one of our editors through a recorded run and write down everything a recording holds.

The editor, its reward and its optimiser are the real ones; what happens inside is read by wrapping
their methods. Observations carry the recording's names, so that comparing is a look-up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from rledit.capture import capture
from rledit.editors import hypernetwork_editor
from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.editors.moment_editor import MomentEditor, Proposal
from rledit.reward import Reward, RewardConfig, RewardTerms, _Remembered
from rledit.shift import LowRankShift, Shifts
from rledit.tokenization import EditBatch, Phase

from .names import moment_state, network_gradients, network_state

Observations = dict[str, Any]


class Observer:
    """Writes down what an editor does.

    Args:
        editor: The editor to drive.
        wanted: Recorded tensor names; dense weight gradients are formed only where wanted.

    Attributes:
        tensors: Recorded tensor name → ours.
        numbers: Path in the run's manifest entry → ours.
        steps: Steps of the current phase so far.
    """

    def __init__(self, editor: MomentEditor, wanted: Iterable[str]) -> None:
        self.editor = editor
        self.wanted = {name.rpartition("/")[0] for name in wanted}
        self.tensors: Observations = {}
        self.numbers: Observations = {}
        self.phase = "train"
        self.steps = 0
        self._wrap("propose", self._after_propose)
        if isinstance(editor, HypernetworkEditor):
            self._wrap("_clip", self._after_clip)
            self._wrap("_step", self._after_step)

    @property
    def prefix(self) -> str:
        """Name prefix of the current step."""
        return f"{self.phase}/step{self.steps - 1}"

    def train(self, trajectory: Sequence[EditBatch]) -> None:
        """Train on the recorded trajectory."""
        editor = self.editor
        assert isinstance(editor, HypernetworkEditor)
        self.numbers["grad_norm"] = []
        with self._observed_reward():
            editor.train_step(trajectory)
        for shape, network in editor.networks.items():
            self._store(f"train/final/net/{shape}.", network_state(network))
        self._store_moments("train/final/net/{}.normalizer.")

    def edit(self, stream: Sequence[EditBatch]) -> None:
        """Edit the valid stream."""
        self.phase, self.steps = "valid", 0
        for batch in stream:
            self.editor.edit(batch)
        if isinstance(self.editor, HypernetworkEditor):
            for shape, network in self.editor.networks.items():
                self._store(f"valid/final/net/{shape}.", network_state(network))
        self._store_moments("valid/final/net/{}.normalizer.")
        for name, weight in self.editor.model.weights.state_dict().items():
            self.tensors[f"valid/final/weight/{name}"] = weight

    def _wrap(self, method: str, after: Callable[..., None]) -> None:
        original = getattr(self.editor, method)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before = self._before(method, *args)
            result = original(*args, **kwargs)
            after(before, result)
            return result

        setattr(self.editor, method, wrapped)

    def _before(self, method: str, *args: Any) -> Any:
        """What has to be read before the method runs."""
        if method == "propose":
            phase = args[0].edit
            return phase, [self._cached(group) for group in groups_of(phase)]
        if method == "_clip":
            return self._gradients()
        return None

    def _cached(self, group: Phase) -> float:
        return capture(self.editor.model, group, self.editor.tokens).loss

    def _after_propose(self, before: tuple[Phase, list[float]], proposal: Proposal) -> None:
        self.steps += 1
        phase, losses = before
        captured = proposal.captured
        for name, shift in proposal.shifts.items():
            self.tensors[f"{self.prefix}/keys/{name}"] = captured.keys[name].clone()
            self.tensors[f"{self.prefix}/values_grad/{name}"] = captured.values[name].clone()
            self.tensors[f"{self.prefix}/param_shift/{name}"] = shift.dense().detach()
        counts = torch.bincount(captured.row_group, minlength=len(groups_of(phase)))
        self.tensors[f"{self.prefix}/rows_per_minibatch"] = counts
        self._store_moments(self.prefix + "/normalizer/{}/")
        if self.phase == "train" and isinstance(self.editor, HypernetworkEditor):
            squares = float(proposal.squared_norm().detach())
            self._number("step", self.steps - 1)
            self._number("cache_ce", losses)
            self._number("reg_sum_sq", squares)
            self._number("reg_loss", self.editor.config.reg_coef * squares)

    def _after_clip(self, before: dict[str, Tensor], norm: float) -> None:
        self.numbers["grad_norm"].append(norm)
        self._store(f"{self.prefix}/net_grad_preclip/", before)
        self._store(f"{self.prefix}/net_grad_postclip/", self._gradients())

    def _after_step(self, _: None, __: None) -> None:
        assert isinstance(self.editor, HypernetworkEditor)
        for shape, network in self.editor.networks.items():
            self._store(f"{self.prefix}/net_after_step/{shape}.", network_state(network))

    def _gradients(self) -> dict[str, Tensor]:
        assert isinstance(self.editor, HypernetworkEditor)
        found: dict[str, Tensor] = {}
        for shape, network in self.editor.networks.items():
            found |= {f"{shape}.{k}": v for k, v in network_gradients(network).items()}
        return found

    @contextmanager
    def _observed_reward(self) -> Iterator[None]:
        observer = self

        class ObservedReward(Reward):
            def backward(self, shifts: Shifts) -> RewardTerms:
                observer.look_ahead(self, shifts)
                terms = super().backward(shifts)
                observer.look_back(self._config, terms)
                return terms

        with patch.object(hypernetwork_editor, "Reward", ObservedReward):
            yield

    def look_ahead(self, reward: Reward, shifts: Shifts) -> None:
        """Before the backward pass: losses by group, and gradients of the whole shift matrix.

        The release forms the dense gradient of every edited weight. Here only the factors' gradient
        is formed, K times the dense one; the same passes with the shift itself as a leaf, in place
        of its right factor, give the dense matrix.
        """
        config, window = reward._config, list(reward._window)
        by_group = [
            probe(reward, config, [entry], shifts)[0]
            for whole in window
            for entry in entries_by_group(whole)
        ]
        self._number("equiv_ce", [terms.equivalence[0] for terms in by_group])
        self._number("unrel_kl", [terms.divergence[0] for terms in by_group])
        for name, settings in (
            ("weight_grad", config),
            ("weight_grad_gen_only", replace(config, loc_coef=0.0)),
        ):
            if f"{self.prefix}/{name}" not in self.wanted:
                continue
            leaves = probe(reward, settings, window, shifts)[1]
            for module, leaf in leaves.items():
                assert leaf.right.grad is not None
                self.tensors[f"{self.prefix}/{name}/{module}"] = leaf.right.grad.T.clone()

    def look_back(self, config: RewardConfig, terms: RewardTerms) -> None:
        """After the backward pass: the losses that were differentiated."""
        editor = self.editor
        assert isinstance(editor, HypernetworkEditor)
        locality = [config.loc_coef * value for value in terms.divergence]
        decayed = sum(config.decay**j * value for j, value in enumerate(locality))
        self._number("gen_per_backtracked_batch", terms.equivalence)
        self._number("loc_per_backtracked_batch", locality)
        self._number("tot_loc", decayed)
        self._number("tot_gen_without_reg", terms.total - decayed)
        # The tracker got the mean over the window's batches from RLEdit, λ_loc included, and the
        # mean over the batch's loss groups from the others, λ_loc left out.
        step = self.steps - 1
        if editor.config.transition:
            gen, loc = terms.equivalence, locality
        else:
            gen = self.numbers[f"losses/{step}/equiv_ce"]
            loc = self.numbers[f"losses/{step}/unrel_kl"]
        self.numbers[f"wandb/{step}/gen_loss"] = sum(gen) / len(gen)
        self.numbers[f"wandb/{step}/loc_loss"] = sum(loc) / len(loc)

    def _number(self, name: str, value: Any) -> None:
        self.numbers[f"losses/{self.steps - 1}/{name}"] = value

    def _store(self, prefix: str, tensors: dict[str, Tensor]) -> None:
        self.tensors |= {f"{prefix}{name}": value for name, value in tensors.items()}

    def _store_moments(self, pattern: str) -> None:
        for shape, moments in self.editor.moments.items():
            self._store(pattern.format(shape), moment_state(moments))


def groups_of(phase: Phase) -> list[Phase]:
    """The loss groups of a phase, each as a phase."""
    size = phase.group_size
    return [Phase(phase.samples[i : i + size], size) for i in range(0, len(phase), size)]


def entries_by_group(entry: _Remembered) -> list[_Remembered]:
    """A remembered batch cut into its loss groups."""
    size = entry.batch.unrelated.group_size
    kinds = (entry.batch.edit, entry.batch.equivalent, entry.batch.unrelated)
    groups = zip(*(groups_of(kind) for kind in kinds), strict=True)
    return [
        _Remembered(
            EditBatch(group[0], group[1], group[2]), entry.reference[i * size : (i + 1) * size]
        )
        for i, group in enumerate(groups)
    ]


def probe(
    reward: Reward, config: RewardConfig, window: Sequence[_Remembered], shifts: Shifts
) -> tuple[RewardTerms, dict[str, LowRankShift]]:
    """The reward's own backward pass on a copy of a window, with dense shifts as leaves."""
    model = reward._model
    other = Reward(model, config)
    other._window = deque(_Remembered(e.batch, list(e.reference)) for e in window)
    leaves = {
        name: LowRankShift(None, shift.dense()).detached(requires_grad=True)
        for name, shift in shifts.items()
    }
    return other.backward(leaves), leaves
