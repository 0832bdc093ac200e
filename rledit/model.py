"""A language model made ready for editing: frozen, with its prefix cache, edited matrices and
encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rledit.chat import PromptStyle
from rledit.errors import UserError
from rledit.exactness import require_exact
from rledit.families import edited_modules, family_of, layer_index, linear_shape
from rledit.finite import require_finite_parameters
from rledit.instructions import Instruction
from rledit.lazy_torch import Tensor, nn, torch
from rledit.micro_batches import TOKENS_PER_ROW, MicroBatch, make_micro_batches
from rledit.prefix_cache import PrefixCache
from rledit.ranks import MostPasses, Ranks, SingleProcess, largest
from rledit.tokenization import Encoder, Sample
from rledit.weights import EditedWeights, WeightAccess
from rledit.writing_systems import AnswerSpace

if TYPE_CHECKING:
    from rledit.overlay import Overlay

_OVERLAY = "_rledit_overlay"

SINGLE_PASS_TOKENS = 1280
"""Tokens of a physical batch at least, in passes over one batch of edits and those without a graph.

On a CPU a small batch reads every weight for a few prompts. The steps of a trajectory put up with
that, as their memory is not to grow with the prompts they look back on.
"""
SHARDED_PASS_TOKENS = 4096
"""Tokens of a physical batch at least, over a sharded model: a pass gathers every layer from all
ranks, so that few are made."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How passes are run. Nothing here changes a number beyond floating-point round-off.

    Attributes:
        token_budget: Padded tokens of one physical batch. None: 320 on a CPU in the steps of a
            trajectory, which keeps their memory small, `SINGLE_PASS_TOKENS` elsewhere, and
            `SHARDED_PASS_TOKENS` over a sharded model; 8,192 on an accelerator.
        cache_bytes: Memory for the hidden states of the frozen prefix.
        cache_on_device: Keep the prefixes on the model's device instead of host memory.
    """

    token_budget: int | None = None
    cache_bytes: int = 2 << 30
    cache_on_device: bool = False

    def tokens(self, device: torch.device, least: int = 0) -> int:
        """The token budget on a device: what was asked for, or else at least `least`."""
        if self.token_budget is not None:
            return self.token_budget
        return max(least, 320 if device.type == "cpu" else 8192)


class OccupiedError(UserError, ValueError):
    """A model that already carries the memory of an editor."""


class EditableModel:
    """A frozen causal language model whose chosen MLP linear layers can be edited.

    Args:
        model: A Hugging Face causal language model; it is frozen and put in evaluation mode.
        tokenizer: Its tokenizer; None where samples are already tokens.
        modules: Target modules, see `rledit.families.edited_modules`.
        execution: How passes are run.
        access: How weights are read and written (sharded models bring their own).
        ranks: Processes that hold the same model, or slices of it, and share the prompts of
            training, editing and scoring.
        prompt_style: How prompts are put to the model: bare, or in its chat template.
        bos: Whether texts begin with BOS; None: as the tokenizer itself has it.
        answer_space: Whether a space stands before an answer.
        instruction: What edits' prompts are asked with, where the method has one.
        first_layer: Where passes over kept prefixes begin if there are no target modules, which
            tell otherwise; None: the last layer.

    Attributes:
        in_slices: Whether the matrices lie in slices on several ranks, which gather a layer for
            every pass.

    Raises:
        ValueError: The modules are not this model's.
        UneditableError: The model's architecture cannot be edited.
        OccupiedError: An earlier editor's memory is in force on it.
        NonFiniteError: A weight is no number; names the matrix and the entry.
        TokenizationError: The tokenizer has no usable chat template, or no BOS token, and one is
            asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any | None,
        modules: Sequence[str],
        execution: Execution | None = None,
        access: WeightAccess | None = None,
        ranks: Ranks | None = None,
        prompt_style: PromptStyle = "bare",
        bos: bool | None = None,
        answer_space: AnswerSpace = "auto",
        instruction: Instruction | None = None,
        first_layer: int | None = None,
    ) -> None:
        self.ranks: Ranks = ranks or SingleProcess()
        self.in_slices = access is not None and access.in_step
        in_step = self.in_slices and self.ranks.size > 1
        self.most_passes: MostPasses | None = partial(largest, self.ranks) if in_step else None
        self.overlay: Overlay | None = None
        require_unoccupied(model)
        self.model = model.eval().requires_grad_(False)
        require_finite_parameters(model)
        self.family = family_of(model)
        self.modules = edited_modules(model, modules)
        self.execution = execution or Execution()
        self.device = next(model.parameters()).device
        self.weights = EditedWeights(model, self.modules, access)
        n_layers = len(model.get_submodule(self.family.layers))  # type: ignore[arg-type]
        layers = [layer_index(self.family, name) for name in self.modules]
        self.prefix_cache = PrefixCache(
            model,
            self.family,
            min(layers, default=n_layers - 1 if first_layer is None else first_layer),
            cache_bytes=self.execution.cache_bytes,
            cache_device=self.device if self.execution.cache_on_device else None,
            most_passes=self.most_passes,
        )
        if self.family.described:
            require_exact(model, self.family, self.prefix_cache.first_layer)
        limit = getattr(model.config, "max_position_embeddings", None)
        self._encoder = None
        if tokenizer is not None:
            self._encoder = Encoder(
                tokenizer,
                max_length=limit,
                style=prompt_style,
                bos=bos,
                answer_space=answer_space,
                instruction=instruction,
            )

    def attach(self, overlay: Overlay) -> None:
        """Take an editor's memory: announced passes, `weights.unedited` and `weights.restore` know
        of it from now on.

        Raises:
            OccupiedError: Another one is in force.
        """
        require_unoccupied(self.model)
        vars(self.model)[_OVERLAY] = overlay
        self.overlay = self.weights.overlay = self.prefix_cache.overlay = overlay

    def detach(self) -> None:
        """Let go of an empty memory: the model has no hooks of it any more, nor its editor a use.

        Raises:
            OccupiedError: It is not empty.
        """
        require_unoccupied(self.model)
        overlay: Overlay | None = vars(self.model).pop(_OVERLAY, None)
        if overlay is not None:
            overlay.leave()
        self.overlay = self.weights.overlay = self.prefix_cache.overlay = None

    def announced(self, prompts: Tensor) -> AbstractContextManager[None]:
        """Tell a memory which prompts (b, T) of one length the passes inside the context continue.

        Every rank of a sharded model makes this call.
        """
        return nullcontext() if self.overlay is None else self.overlay.announced_prompts(prompts)

    @property
    def encoder(self) -> Encoder:
        """The encoder of this model's tokenizer.

        Raises:
            ValueError: The model was made without a tokenizer.
        """
        if self._encoder is None:
            raise ValueError("this model was made without a tokenizer; pass one to EditableModel")
        return self._encoder

    @contextmanager
    def asking(self, instruction: Instruction | None) -> Iterator[None]:
        """Ask edits inside the context with another instruction, or none."""
        before = self.encoder
        self._encoder = before.instructed(instruction)
        try:
            yield
        finally:
            self._encoder = before

    @property
    def has_encoder(self) -> bool:
        """Whether the model was made with a tokenizer."""
        return self._encoder is not None

    @property
    def compute_dtype(self) -> torch.dtype:
        """Precision of hypernetworks and losses: float64 for float64 models, else float32."""
        dtype = next(self.model.parameters()).dtype
        return torch.float64 if dtype == torch.float64 else torch.float32

    def linear(self, name: str) -> nn.Module:
        """The target module of that name."""
        return self.model.get_submodule(name)

    def shape(self, name: str) -> tuple[int, int]:
        """(d_in, d_out) of a linear."""
        return linear_shape(self.linear(name))

    def shapes(self) -> dict[tuple[int, int], tuple[str, ...]]:
        """Edited modules by (d_in, d_out), in module order: the order is the module index."""
        groups: dict[tuple[int, int], list[str]] = {}
        for name in self.modules:
            groups.setdefault(self.shape(name), []).append(name)
        return {shape: tuple(names) for shape, names in groups.items()}

    def micro_batches(
        self, samples: Sequence[Sample], least: int = 0, tokens_per_row: int = TOKENS_PER_ROW
    ) -> list[MicroBatch]:
        """Physical batches of samples under the token budget.

        Args:
            samples: The samples.
            least: Tokens of the budget at least, unless one was asked for.
            tokens_per_row: See `rledit.micro_batches.make_micro_batches`.
        """
        return make_micro_batches(samples, self.pass_tokens(least), tokens_per_row)

    def pass_tokens(self, least: int = 0) -> int:
        """Padded tokens of one physical batch: at least `least`, unless others were asked for."""
        if self.in_slices:
            least = max(least, SHARDED_PASS_TOKENS)
        return self.execution.tokens(self.device, least)

    def own_micro_batches(
        self, samples: Sequence[Sample], own: Sequence[int], least: int = 0
    ) -> list[MicroBatch]:
        """Physical batches of this rank's share of samples, whose places in `samples` they keep.

        The ranks of a sharded model all get as many: the last ones of some are empty.

        Args:
            samples: The samples, the same on every rank.
            own: Places of those that fall to this rank, see `rledit.ranks`.
            least: As for `micro_batches`.
        """
        found = [m.among(own) for m in self.micro_batches([samples[i] for i in own], least)]
        return found + [MicroBatch.empty()] * (self.passes(len(found)) - len(found))

    def passes(self, needed: int) -> int:
        """Passes that this rank makes where it needs so many itself.

        Over a sharded model that is the most that any rank needs, and every rank makes this call.
        """
        return needed if self.most_passes is None else self.most_passes(needed)


def require_unoccupied(model: nn.Module) -> None:
    """Refuse a model that an editor's memory is in force on: it is not the unedited one.

    Raises:
        OccupiedError: There is one.
    """
    overlay: Overlay | None = vars(model).get(_OVERLAY)
    if overlay is not None and overlay.entries:
        raise OccupiedError(
            f"the model carries the memory of an earlier editor ({overlay.entries} entries at "
            f"{overlay.module}); take it back first (weights.restore() of the EditableModel that "
            "was edited), or load the model again"
        )
