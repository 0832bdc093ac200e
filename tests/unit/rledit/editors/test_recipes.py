"""The recipes against the releases' rules, written out plainly from text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from rledit.capture import capture
from rledit.editors import EDITORS, Editor
from rledit.editors.hypernetwork_config import HypernetworkConfig
from rledit.editors.hypernetwork_editor import HypernetworkEditor
from rledit.model import EditableModel
from rledit.records import Edit
from tests.unit.helpers.text_edits import random_edits, tiny_tokenizer
from tests.unit.helpers.tiny_models import tiny_model

MODULES = ("up:1-2",)
STEP = 1e-3
EPS = torch.finfo(torch.float32).eps
TRAINED = ("mend", "malmen", "rledit", "mend_star", "malmen_star", "mend_rledit", "malmen_rledit")


class Release:
    """One method's release on one model: a batch of texts in, a shift per module out.

    Args:
        model: The unedited model; it is edited in place.
        tokenizer: Its tokenizer, whose own BOS begins a prompt.
        modules: Target modules, all of one shape.
        group: Samples per loss group.
        strength: (keys, z-scored keys) → (n, 1), what η is multiplied with.
        zero_values: Whether an incomplete last group's value gradients are taken as zero.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerFast,
        modules: Sequence[str],
        group: int,
        strength: Callable[[Tensor, Tensor], Tensor],
        zero_values: bool = True,
    ) -> None:
        self.model, self.tokenizer, self.modules = model, tokenizer, modules
        self.group, self.strength, self.zero_values = group, strength, zero_values
        self.n, self.mean, self.squares = 0.0, 0.0, 0.0

    def tokens(self, edit: Edit) -> tuple[list[int], list[int]]:
        """Inputs and shifted labels of an edit prompt."""
        prompt = self.tokenizer(edit.prompt)["input_ids"]
        answer = self.tokenizer(" " + edit.target, add_special_tokens=False)["input_ids"]
        return prompt + answer[:-1], [-100] * (len(prompt) - 1) + answer

    def edit(self, edits: Sequence[Edit]) -> dict[str, Tensor]:
        """Edit a batch; returns the shifts (d_in, d_out)."""
        rows = sorted(map(self.tokens, edits), key=lambda row: len(row[0]), reverse=True)
        groups = [rows[i : i + self.group] for i in range(0, len(rows), self.group)]
        found = [self._capture(group) for group in groups]
        for captured in found:
            for name in self.modules:
                self._update(torch.cat(captured[name], -1))
        std = (self.squares / (self.n - 1)).sqrt()
        shifts = {}
        for name in self.modules:
            keys = torch.cat([captured[name][0] for captured in found])
            values = [captured[name][1] for captured in found]
            if self.zero_values and len(groups[-1]) < self.group:
                values[-1] = torch.zeros_like(values[-1])
            z = (torch.cat([keys, torch.cat(values)], -1) - self.mean) / (std + EPS)
            z_keys, z_values = z[:, : keys.shape[1]], z[:, keys.shape[1] :]
            differences = -STEP * self.strength(keys, z_keys) * z_values
            system = keys.T @ keys + torch.eye(keys.shape[1], dtype=keys.dtype)
            shifts[name] = torch.linalg.solve(system, keys.T @ differences)
        with torch.no_grad():
            for name, shift in shifts.items():
                self.model.get_submodule(name).weight.add_(shift.T)
        return shifts

    def _capture(self, group: Sequence[tuple[list[int], list[int]]]) -> dict[str, list[Tensor]]:
        """Keys and value gradients at the answer positions of one right-padded group."""
        width = max(len(ids) for ids, _ in group)
        ids = torch.tensor([[*i, *[0] * (width - len(i))] for i, _ in group])
        mask = torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i, _ in group])
        labels = torch.tensor([[*y, *[-100] * (width - len(y))] for _, y in group])
        seen: dict[str, list[Tensor]] = {}

        def hook(name: str) -> Any:
            def keep(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
                output.retain_grad()
                seen[name] = [args[0].detach(), output]

            return keep

        handles = [
            self.model.get_submodule(name).register_forward_hook(hook(name))
            for name in self.modules
        ]
        self.model.requires_grad_(True)
        logits = self.model(input_ids=ids, attention_mask=mask).logits
        F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100).backward()
        self.model.zero_grad()
        for handle in handles:
            handle.remove()
        answer = labels != -100
        return {n: [k[answer], out.grad[answer]] for n, (k, out) in seen.items()}  # type: ignore[index]

    def _update(self, rows: Tensor) -> None:
        n = len(rows)
        delta = rows.mean(0) - self.mean
        self.squares += rows.var(0) * n + delta.square() * self.n * n / (self.n + n)
        self.mean = self.mean + delta * n / (self.n + n)
        self.n += n


def ultraedit_strength(keys: Tensor, z_keys: Tensor) -> Tensor:
    """‖k̂‖² of UltraEdit."""
    return z_keys.square().sum(-1, keepdim=True)


def rledit_strength(keys: Tensor, z_keys: Tensor) -> Tensor:
    """k · k̂ of RLEdit's network at its start."""
    return (keys * z_keys).sum(-1, keepdim=True)


def editable(family: str = "llama", modules: Sequence[str] = MODULES) -> EditableModel:
    return EditableModel(tiny_model(family), tiny_tokenizer(family), modules)


def batches(n: int, size: int, seed: int = 0) -> list[list[Edit]]:
    """Edits with targets of two words at least: the releases' variance needs two rows a group."""
    edits = [e for e in random_edits(8 * n * size, seed) if len(e.target.split()) > 1]
    return [edits[i * size : (i + 1) * size] for i in range(n)]


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def agree(editor: Editor, release: Release, stream: Sequence[Sequence[Edit]]) -> None:
    weights = editor.model.weights
    for edits in stream:
        before = {name: weights.read(name).clone() for name in editor.model.modules}
        editor.edit(editor.encode(edits))
        for name, shift in release.edit(edits).items():
            assert relative((weights.read(name) - before[name]).T, shift) < 1e-6


@pytest.mark.parametrize(
    ("size", "group"), [(12, 4), (20, 10), (10, 4), (23, 10)], ids=lambda n: str(n)
)
@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_ultraedit_is_its_releases_rule_on_text(family: str, size: int, group: int) -> None:
    """Also where the last of the groups is not full: 10 edits in groups of 4, 23 of 10."""
    model = editable(family)
    cls = EDITORS["ultraedit"]
    config = cls.Config(modules=model.modules, step=STEP, loss_group=group, reference="official")
    release = Release(
        tiny_model(family), tiny_tokenizer(family), model.modules, group, ultraedit_strength
    )
    agree(cls(model, config), release, batches(3, size))


@pytest.mark.parametrize("size", [8, 10])
@pytest.mark.parametrize("editor", ["rledit", "malmen", "untrained"])
def test_rledits_start_is_its_releases_rule_on_text(editor: str, size: int) -> None:
    model = editable()
    cls = EDITORS[editor]
    config = cls.Config(modules=model.modules, initial_step=STEP, reference="official")
    release = Release(
        tiny_model("llama"), tiny_tokenizer("llama"), model.modules, 4, rledit_strength
    )
    agree(cls(model, config), release, batches(3, size))


def test_the_groups_and_their_order_decide_the_shift() -> None:
    """What the tests above could miss, if rows were alike: each departure alone is far off."""
    stream = batches(1, 10)
    shifts = {}
    for name, changed in {
        "official": {},
        "stream order": {"order": "stream"},
        "incomplete kept": {"incomplete_groups": "keep"},
        "groups of 5": {"loss_group": 5},
    }.items():
        model = editable()
        cls = EDITORS["rledit"]
        config = cls.Config(
            modules=model.modules, initial_step=STEP, reference="official", **changed
        )
        editor = cls(model, config)
        editor.edit(editor.encode(stream[0]))
        start = tiny_model("llama").get_submodule(model.modules[0]).weight
        shifts[name] = model.weights.read(model.modules[0]) - start.detach()
    for name in list(shifts)[1:]:
        assert relative(shifts[name], shifts["official"]) > 0.01, name


def test_training_on_an_incomplete_group_edits_with_zeros_and_learns_from_the_true_rows() -> None:
    """The release edits with value gradients padded by zeros and differentiates the true ones."""
    model = editable()
    cls = EDITORS["rledit"]
    config = cls.Config(modules=model.modules, initial_step=STEP, rank=3, reference="official")
    editor = cls(model, config)
    assert isinstance(editor, HypernetworkEditor)
    for network in editor.networks.values():
        for parameter in network.parameters():
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn_like(parameter))
    batch = editor.encode(batches(1, 10)[0])
    captured = capture(model, batch.edit)
    editor._update_moments(captured)
    proposal = editor.shift_by(captured, captured.row_group >= 2)
    (shape, network), *_ = editor.networks.items()
    gradient = torch.randn(shape, dtype=torch.float64)
    name = model.modules[0]
    shift = proposal.shifts[name].dense()
    found = torch.autograd.grad(
        (shift * gradient).sum(), list(network.parameters()), retain_graph=True
    )

    # Written out as the release computes it.
    keys, values = captured.keys[name], captured.values[name]
    zeroed = values * (captured.row_group < 2)[:, None]
    moments = editor.moments[shape]

    def differences(values: Tensor) -> Tensor:
        pseudo_keys, pseudo_values = network(
            moments.normalise(torch.cat([keys, values], -1)).expand(2, -1, -1)
        )
        return -network.step[0] * (keys * pseudo_keys[0]).sum(-1, keepdim=True) * pseudo_values[0]

    system = keys.T @ keys + network.ridge[0].detach() * torch.eye(shape[0], dtype=keys.dtype)
    edited = torch.linalg.solve(system, keys.T @ differences(zeroed).detach())
    assert relative(shift.detach(), edited) < 1e-9
    solved = torch.linalg.solve(system, gradient)
    ridge_gradient = -network.ridge[0].detach() * (solved * edited).sum()
    total = (keys @ solved * differences(values)).sum()
    expected = torch.autograd.grad(total, list(network.parameters()), allow_unused=True)
    for (label, _), ours, theirs in zip(network.named_parameters(), found, expected, strict=True):
        if label == "log_ridge":
            assert math.isclose(float(ours[0]), float(ridge_gradient), rel_tol=1e-9)
        else:
            assert theirs is not None
            assert relative(ours, theirs) < 1e-9, label


def test_a_batch_smaller_than_a_loss_group_is_refused_where_the_release_cannot_take_it() -> None:
    model = editable()
    cls = EDITORS["ultraedit"]
    config = cls.Config(modules=model.modules, step=STEP, reference="official")
    editor = cls(model, config)
    with pytest.raises(ValueError, match=r"batch of 4 edits has no complete loss group of 10"):
        editor.edit(editor.encode(batches(1, 4)[0]))
    assert cls.batch_problem(config, 4) is not None
    assert cls.batch_problem(config, 10) is None
    own = cls.Config(modules=model.modules, step=STEP)
    assert cls.batch_problem(own, 4) is None


@pytest.mark.parametrize("editor", TRAINED)
def test_every_hypernetwork_method_has_three_recipes(editor: str) -> None:
    cls = EDITORS[editor].Config
    assert issubclass(cls, HypernetworkConfig)
    official, paper, converged = (
        cls(modules=("m",), reference=name) for name in ("official", "paper", "converged")
    )
    assert official.conventions().order == "longest_first"
    assert paper.conventions().order == "stream"
    # Settings are the published ones in both; the conventions alone differ.
    assert (official.rank, official.meta_lr) == (paper.rank, paper.meta_lr)
    assert official.conventions().step_form == paper.conventions().step_form == "raw"
    assert converged.conventions().step_form == "log"
    assert converged.init_std == "auto" and converged.meta_lr > paper.meta_lr
    assert cls(modules=("m",), reference="converged", rank=7).rank == 7
    # MEND's release takes incomplete groups as they are.
    kept = "keep" if editor.startswith("mend") else "zero_values"
    assert official.conventions().incomplete_groups == kept


@pytest.mark.parametrize("scope", ["lifelong", "trajectory"])
def test_where_training_has_left_no_moments_the_first_batch_begins_them(scope: str) -> None:
    """And only it, where the stream's rows are kept out: z = x / eps would be 1e7 times too large.

    Untrained there are none, nor where each trajectory begins with none.
    """

    def shifts(**settings: Any) -> list[float]:
        model = EditableModel(tiny_model("llama"), tiny_tokenizer("llama"), ("down:1-2",))
        cls = EDITORS["rledit"]
        fixed = {"rank": 4, "n_blocks": 1, "initial_step": 1e-3, "moments_scope": scope}
        editor = cls(model, cls.Config(modules=model.modules, **fixed, **settings))
        edits = random_edits(8)
        return [editor.edit(editor.encode(part))["shift_norm"] for part in (edits[:4], edits[4:])]

    moved, frozen = shifts(), shifts(update_moments_while_editing=False)
    assert frozen[0] == moved[0]
    assert frozen[1] != moved[1] and 0.1 < frozen[1] / moved[1] < 10


def test_published_settings_give_the_published_step() -> None:
    """One Adam step of 1e-5 takes a raw η from 1e-6 to 1.1e-5; in log form it would stay."""
    for form, expected in {"raw": 1.1e-5, "log": 1e-6}.items():
        model = editable()
        cls = EDITORS["rledit"]
        config = cls.Config(modules=model.modules, initial_step=1e-6, rank=4, step_form=form)
        editor = cls(model, config)
        assert isinstance(editor, HypernetworkEditor)
        editor.train_step([editor.encode(edits) for edits in batches(2, 8)])
        for network in editor.networks.values():
            assert network.step.tolist() == pytest.approx([expected] * 2, rel=2e-2)
