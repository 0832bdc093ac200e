"""DAFNet: a network that attends over the sequence of edits (arXiv 2405.20588).

Each edit comes with a weight, and shrinks what earlier edits have left:

    ΔW ← c ΔW + η Σ_i (w_i / n_i) Σ_t k̃_tᵀ ṽ_t,   W = W_0 + ΔWᵀ,   Σ_i w_i + c = 1

over the n_i rows t of edit i. Rows are gradients at the unedited W_0, in training as along a
stream, so they are constants of an edit. Before it is trained the network is no identity: it has to
learn even the sign of a step.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rledit.capture import Captured, capture
from rledit.editors.base import State, TrainableEditor, prefixed, unprefixed
from rledit.editors.conventions import UntrainedRecipe
from rledit.editors.dafnet_sizes import Averaged, Sizes
from rledit.editors.dafnet_training import Curriculum, learn, prompts_of
from rledit.editors.meta_optimiser import adam_state, load_adam_state
from rledit.editors.sphere import SphereSettings
from rledit.finite import require_finite
from rledit.lazy_torch import Tensor, nn, torch
from rledit.model import EditableModel
from rledit.moments import RunningMoments
from rledit.records import Probe
from rledit.seeding import seeded
from rledit.shift import LowRankShift
from rledit.step_size import SettingError
from rledit.tokenization import EditBatch, Phase, Sample

if TYPE_CHECKING:
    from rledit.editors.dafnet_network import Past, SequenceNetwork, Transformed


@dataclass(frozen=True, kw_only=True)
class DAFNetConfig(SphereSettings):
    """DAFNet's settings; defaults are its release's on Llama-2-7B, but for `train_steps`.

    Attributes:
        modules: Target modules, see `rledit.families.edited_modules`.
        n_blocks: Blocks of the network.
        hidden_width: Hidden width of the networks that weigh the rows of an edit.
        attention_heads: Heads of the attention between edits.
        head_width: Width of each.
        weighing_heads: Heads of the attention that weighs an edit against earlier ones.
        weighing_width: Width of each.
        inner_width: Hidden width of the network at the end of a block.
        initial_step: Step η of every module at the start; it is learned as it is.
        train_steps: Training steps, each on one sequence of edits. How many the release makes is
            not published: our own choice.
        sequence_cap: Longest training sequence that the curriculum comes to, in edits. Training
            draws so many edits a step, whatever the stream's length.
        first_cap: Longest training sequence at first; 1 as published. A short training would not
            get beyond it.
        scored_edits_per_step: Edits of a sequence whose prompts the loss is taken of, at most.
        curriculum_patience: Steps without a better average loss after which sequences grow
            longer, divided by the logarithm of their length.
        meta_lr: Adam's learning rate for the network.
        step_lr: Adam's learning rate for the steps η.
        max_grad_norm: Clipping norm of the network's gradient.
        edit_coef: Weight of the loss on edit prompts.
        rephrase_coef: Weight of the loss on rephrases.
        loc_coef: Weight of the divergence on unrelated prompts.
        seed: Seed of the network's start and of the lengths that training draws.
        reference: The recipe. `official` repeats the release: the weights of edits get no gradient
            and stay as they were drawn, and a batch weighs its edits otherwise than one at a time.
            `paper` mends both.
        learned_weights: Whether the weights of edits get a gradient; None: as the recipe has it.
        averaged: What is averaged over blocks, the weights (`products`) or the shares of attention
            that they are made of (`shares`); None: as the recipe has it.
    """

    modules: tuple[str, ...]
    n_blocks: int = 2
    hidden_width: int = 1024
    attention_heads: int = 2
    head_width: int = 1024
    weighing_heads: int = 2
    weighing_width: int = 256
    inner_width: int = 1536
    initial_step: float = 1e-4
    train_steps: int = 20_000
    sequence_cap: int = 1000
    first_cap: int = 1
    scored_edits_per_step: int = 48
    curriculum_patience: int = 3000
    meta_lr: float = 1e-6
    step_lr: float = 1e-4
    max_grad_norm: float = 100.0
    edit_coef: float = 0.1
    rephrase_coef: float = 0.1
    loc_coef: float = 0.2
    seed: int = 0
    reference: UntrainedRecipe = "paper"
    learned_weights: bool | None = None
    averaged: Averaged | None = None

    recipes: ClassVar[Mapping[str, tuple[bool, Averaged]]] = {
        "official": (False, "products"),
        "paper": (True, "shares"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        learned, averaged = self.recipes[self.reference]
        if self.learned_weights is None:
            object.__setattr__(self, "learned_weights", learned)
        if self.averaged is None:
            object.__setattr__(self, "averaged", averaged)
        if self.train_steps < 1:
            raise SettingError(
                "train_steps",
                f"{self.train_steps}: an untrained network moves an edit's loss up, as it has to "
                "learn the sign of its steps; give at least 1",
            )
        if not self.edit_coef and not self.rephrase_coef:
            raise SettingError(
                "edit_coef", "it and rephrase_coef are 0: training would teach no edit; raise one"
            )

    @property
    def sizes(self) -> Sizes:
        """Widths of a block."""
        return Sizes(
            hidden=self.hidden_width,
            heads=self.attention_heads,
            head_width=self.head_width,
            weighing_heads=self.weighing_heads,
            weighing_width=self.weighing_width,
            inner=self.inner_width,
        )


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of a sequence in one module: none whose input or gradient is all zero.

    Attributes:
        rows: (T, d_in + d_out), [K, V] as captured.
        counts: Rows of each edit.
    """

    rows: Tensor
    counts: list[int]


class DAFNet(TrainableEditor):
    """Editing with a network that attends over all edits so far."""

    name = "dafnet"
    checked = {
        "reference": "test_an_update_equals_plain_loops",
        "properties": "test_weights_add_up_to_one_and_the_first_edit_has_all_of_it",
    }
    Config = DAFNetConfig
    config: DAFNetConfig
    trains_on: ClassVar[frozenset[Probe]] = frozenset({"rephrase", "locality prompt"})
    prefix_safe = True
    work_kind = "trained"

    def __init__(self, model: EditableModel, config: DAFNetConfig) -> None:
        super().__init__(model, config)
        self.shapes = model.shapes()
        with seeded(config.seed):
            self.networks = {shape: self._new_network(shape) for shape in self.shapes}
        self.moments = {
            shape: RunningMoments(sum(shape), "exact", model.compute_dtype, model.device, 1e-8)
            for shape in self.shapes
        }
        self.past: dict[str, list[Past]] = {}
        self.curriculum = Curriculum(
            config.sequence_cap, config.curriculum_patience, config.first_cap
        )
        steps = [network.step for network in self.networks.values()]
        self.optimiser = torch.optim.Adam(
            [
                {"params": self._network_parameters(), "lr": config.meta_lr},
                {"params": steps, "lr": config.step_lr},
            ]
        )
        self._steps_made = 0

    def _new_network(self, shape: tuple[int, int]) -> SequenceNetwork:
        from rledit.editors.dafnet_network import SequenceNetwork

        config = self.config
        return SequenceNetwork(
            *shape,
            len(self.shapes[shape]),
            n_blocks=config.n_blocks,
            sizes=config.sizes,
            initial_step=config.initial_step,
        ).to(self.model.device, self.model.compute_dtype)

    def _network_parameters(self) -> list[nn.Parameter]:
        """All but the steps."""
        return [p for network in self.networks.values() for p in network.blocks.parameters()]

    @classmethod
    def trains_on_of(cls, config: DAFNetConfig) -> frozenset[Probe]:
        """The prompts whose terms count in the loss."""
        weights: dict[Probe, float] = {
            "rephrase": config.rephrase_coef,
            "locality prompt": config.loc_coef,
        }
        return frozenset(probe for probe in cls.trains_on if weights[probe])

    @property
    def group_size(self) -> int:
        """Loss groups play no part: the loss is a sum over tokens."""
        return 1

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Weigh the edits against those before them, and rewrite the matrices."""
        weights = self.model.weights
        with torch.no_grad():
            with weights.unedited():
                captured = self._captured(batch.edit.samples)
            kept: list[float] = []
            change = torch.zeros((), dtype=torch.float64)
            for name, shape, module in self._modules():
                network = self.networks[shape]
                found = _rows_of(captured, name, len(batch.edit))
                earlier = self.past.get(name) or network.beginning(captured.keys[name])
                out = self._transformed(shape, module, found, earlier)
                shift, left = self._shift(shape, module, found, out)
                current = weights.read(name)
                master = torch.promote_types(current.dtype, torch.float32)
                original = weights.original(name).to(master)
                # In place from here: these are whole matrices.
                value = (current.to(master) - original).mul_(left.to(master)).add_(original)
                shift.add_to(value)
                change += float(torch.linalg.vector_norm(value - current)) ** 2
                weights.set(name, value)
                pairs = zip(earlier, out.past, strict=True)
                self.past[name] = [old.followed_by(new) for old, new in pairs]
                kept.append(float(left))
        return {
            "edit_loss": captured.loss,
            "shift_norm": float(change.sqrt()),
            "earlier_edits_kept": sum(kept) / len(kept),
        }

    def _modules(self) -> list[tuple[str, tuple[int, int], int]]:
        """Every edited module with its shape and its place among those of that shape."""
        return [
            (name, shape, j) for shape, names in self.shapes.items() for j, name in enumerate(names)
        ]

    def _captured(self, samples: Sequence[Sample]) -> Captured:
        """Rows of a sequence on the current weights, the loss a sum over its target tokens."""
        return capture(self.model, Phase(tuple(samples), 1), "all", token_weight=1.0)

    def _transformed(
        self, shape: tuple[int, int], module: int, found: _Rows, past: Sequence[Past] = ()
    ) -> Transformed:
        moments = self.moments[shape]
        # Never trained, there is nothing to normalise by.
        rows = moments.normalise(found.rows) if float(moments.count) else found.rows
        out: Transformed = self.networks[shape](rows, found.counts, module, past)
        return out

    def _shift(
        self, shape: tuple[int, int], module: int, found: _Rows, out: Transformed
    ) -> tuple[LowRankShift, Tensor]:
        """What a sequence adds to a module's ΔW, and what it leaves of what was there."""
        from rledit.editors.dafnet_network import edit_weights

        shares = out.shares if self.config.learned_weights else out.shares.detach()
        assert self.config.averaged is not None
        weights, left = edit_weights(shares, self.config.averaged)
        counts = torch.tensor(found.counts, device=weights.device)
        per_row = (weights / counts.clamp_min(1)).repeat_interleave(counts)
        right = self.networks[shape].step[module] * per_row[:, None] * out.values
        shift = LowRankShift(out.keys, right)
        if self.sphere is not None:
            shift = self.sphere.shift(self.shapes[shape][module], shift)
        # With many rows the matrix itself is the cheaper form.
        many = len(out.keys) > math.prod(shape) / sum(shape)
        return (LowRankShift(None, shift.dense()) if many else shift), left

    @property
    def train_steps(self) -> int:
        """Training steps."""
        return self.config.train_steps

    def trajectory_length(self, stream_length: int) -> int:
        """Batches of one edit each: the longest sequence, whatever the stream's length."""
        return self.config.sequence_cap

    def trajectory_batches(self, stream_length: int, batch_size: int) -> int:
        """Batches that hold the longest sequence."""
        return -(-self.config.sequence_cap // batch_size)

    def train_step(self, *trajectories: Sequence[EditBatch]) -> dict[str, float]:
        """Train on a sequence: the first edits of a trajectory, as many as are drawn by lot."""
        (trajectory,) = trajectories
        taken: list[EditBatch] = []
        for batch in trajectory:  # what is not looked at need not be tokenised
            batch.require(self.trains_on_of(self.config))
            taken.append(batch)
            if sum(len(one.edit) for one in taken) >= self.curriculum.cap:
                break
        rng = random.Random(f"{self.config.seed}/{self._steps_made}")
        edits = [sample for batch in taken for sample in batch.edit.samples]
        n = rng.randint(1, min(self.curriculum.cap, len(edits)))
        scored = sorted(rng.sample(range(n), min(self.config.scored_edits_per_step, n)))
        # The last bits of a prefix depend on which prompts it was recorded with.
        self.model.prefix_cache.clear()
        coefs = {
            "edit": self.config.edit_coef,
            "equivalent": self.config.rephrase_coef,
            "unrelated": self.config.loc_coef,
        }
        shifts = self._proposed(edits[:n])
        measured = learn(self.model, shifts, prompts_of(taken, scored, coefs))
        norm = nn.utils.clip_grad_norm_(self._network_parameters(), self.config.max_grad_norm)
        measured |= {"grad_norm": float(norm), "sequence_length": float(n)}
        require_finite(measured, "the training loss", self.model, edits[:n])
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self._steps_made += 1
        self.curriculum.observe(measured["loss"])
        return measured

    def _proposed(self, samples: Sequence[Sample]) -> dict[str, LowRankShift]:
        """The shifts of a sequence on the unedited model, with the networks' graph."""
        captured = self._captured(samples)
        found = {name: _rows_of(captured, name, len(samples)) for name in self.model.modules}
        for shape, names in self.shapes.items():
            self.moments[shape].update(torch.cat([found[name].rows for name in names]))
        with torch.enable_grad():
            shifts = {
                name: self._shift(shape, j, found[name], self._transformed(shape, j, found[name]))[
                    0
                ]
                for name, shape, j in self._modules()
            }
        return shifts

    @property
    def training_measures(self) -> dict[str, float]:
        """The longest sequence of the curriculum, and the steps η of all modules."""
        etas = [eta for network in self.networks.values() for eta in network.step.tolist()]
        return {
            "longest_sequence": float(self.curriculum.cap),
            "eta_min": min(etas),
            "eta_max": max(etas),
        }

    def state_dict(self) -> State:
        """Networks, moments, and what the attentions read of the edits so far."""
        state: State = {}
        for shape, network in self.networks.items():
            place = f"{shape[0]}x{shape[1]}."
            copies = {k: v.detach().clone() for k, v in network.state_dict().items()}
            state |= prefixed(f"network.{place}", copies)
            state |= prefixed(f"moments.{place}", self.moments[shape].state_dict())
        for name, blocks in self.past.items():
            for b, past in enumerate(blocks):
                own = {k: v.clone() for k, v in vars(past).items()}
                state |= prefixed(f"past.{name}.{b}.", own)
        return state

    def load_state_dict(self, state: State) -> None:
        """Put networks, moments and the edits so far back."""
        from rledit.editors.dafnet_network import Past

        for shape, network in self.networks.items():
            place = f"{shape[0]}x{shape[1]}."
            moments = unprefixed(f"moments.{place}", state)
            if not moments:
                raise ValueError(
                    f"the saved state has no moments for linear layers of shape {place[:-1]}; it "
                    "belongs to another model or another choice of modules"
                )
            network.load_state_dict(unprefixed(f"network.{place}", state))
            self.moments[shape].load_state_dict(moments)
        self.past = {}
        for name, shape, _ in self._modules():
            if f"past.{name}.0.keys" in state:
                like = self.networks[shape].step
                self.past[name] = [
                    Past(
                        **{k: v.to(like) for k, v in unprefixed(f"past.{name}.{b}.", state).items()}
                    )
                    for b in range(self.config.n_blocks)
                ]

    def training_state_dict(self) -> State:
        """`state_dict`, the optimiser, and how far the curriculum is."""
        return {
            **self.state_dict(),
            **prefixed("optimiser.", adam_state(self.optimiser)),
            **prefixed("curriculum.", self.curriculum.state_dict()),
            "steps_made": torch.tensor(self._steps_made),
        }

    def load_training_state_dict(self, state: State) -> None:
        """Put a saved training state back."""
        self.load_state_dict(state)
        load_adam_state(self.optimiser, unprefixed("optimiser.", state))
        self.curriculum.load_state_dict(unprefixed("curriculum.", state))
        self._steps_made = int(state["steps_made"])


def _rows_of(captured: Captured, name: str, n_edits: int) -> _Rows:
    """The rows of a module with a reason to be there: normalised, zeros would be none any more."""
    keys, values = captured.keys[name], captured.values[name]
    alive = (keys != 0).any(1) & (values != 0).any(1)
    edits = captured.row_group.to(alive.device)[alive]
    counts: list[Any] = torch.bincount(edits, minlength=n_edits).tolist()
    return _Rows(torch.cat([keys, values], 1)[alive], counts)
