"""Language models too large for one GPU, sharded by DeepSpeed ZeRO-3: the only file that knows it.

Each rank holds an equal slice of every matrix but the output embedding, which it has whole, as all
vectors. A pass gathers the decoder layers one by one, the next while one runs, edits are written
under `GatheredParameters`, and the low-rank term of `rledit.shift` is traced by hooks as on a whole
model. Prompts are dealt over the ranks as where each holds the whole model. Gathering is
collective, so all make as many passes in the same order, empty ones where they have no prompt left
(see `rledit.ranks`), and all take the same step. Beside its slice, a rank keeps the unedited copies
(and fp32 masters) of the edited matrices.

DeepSpeed replaces ``torch.nn.functional.linear`` in the whole process when it first shards a model.
Its version adds a bias after rounding the product, so linear layers with biases (GPT-J) agree with
an unsharded bf16 model to bf16 rounding only; in float32 the difference is round-off.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import HfDeepSpeedConfig

from pipeline.inputs.checkpoints import read_config
from pipeline.inputs.model_loading import configured
from pipeline.run.fleet.process_group import ProcessRanks
from pipeline.run.weight_files import CheckpointFiles
from rledit.families import family_of
from rledit.finite import NonFiniteError
from rledit.model import EditableModel, Execution

# DeepSpeed reads it when it is imported.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import set_z3_leaf_module

logger = logging.getLogger(__name__)

Offload = Literal["none", "cpu"]


@dataclass(frozen=True, kw_only=True)
class ZeroSettings:
    """How a model is sharded.

    Attributes:
        offload: Keep the slices in host memory and bring them to the GPU layer by layer.
    """

    offload: Offload = "none"

    def config(self, dtype: torch.dtype) -> dict[str, Any]:
        """DeepSpeed's configuration for a frozen model of that type."""
        zero: dict[str, Any] = {
            "stage": 3,
            # Passes begin in the middle of the stack, so the order of modules differs from pass to
            # pass: DeepSpeed's way of gathering ahead would leave parameters gathered. See
            # `_LayersAhead`.
            "stage3_prefetch_bucket_size": 0,
            "stage3_max_reuse_distance": 0,
            # What stays whole on every rank is decided here, see `_keep_whole`.
            "stage3_param_persistence_threshold": 0,
            # Between CPUs the copy of each matrix out of one buffer costs more than it saves.
            "stage3_allgather_sequential": not torch.cuda.is_available(),
        }
        if self.offload == "cpu":
            zero["offload_param"] = {"device": "cpu", "pin_memory": False}
        config: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
        if dtype in _PRECISIONS:
            config[_PRECISIONS[dtype]] = {"enabled": True}
        return config


_PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16"}


class ShardedAccess:
    """Reads and writes of matrices whose slices lie on all ranks; every rank makes every call."""

    in_step = True

    def __init__(self, engine: Any) -> None:
        # The engine's hooks gather and release the parameters: it has to live as long as the model.
        self._engine = engine
        self._coordinator = engine.optimizer.get_param_coordinator()
        self._ahead = _LayersAhead(engine.module.get_submodule(family_of(engine.module).layers))
        engine.module.register_forward_pre_hook(self._begin_pass)

    def _begin_pass(self, *_: Any) -> None:
        """Leave nothing gathered, and let DeepSpeed expect nothing of the pass.

        It would take it for one more of those before it, and keep what comes again in them.
        """
        self._let_go()
        self._coordinator._invalidate_trace()

    def _let_go(self) -> None:
        """Release what a pass has left: a layer on its way, and one that a graph began inside.

        DeepSpeed sees no end of the latter's backward pass.
        """
        self._ahead.drop()
        self._coordinator.release_backward_leftovers()

    def read(self, parameter: nn.Parameter) -> Tensor:
        """A copy of the whole matrix, on every rank."""
        self._let_go()
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    def write(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Replace the whole matrix by rank 0's `value`, rounding to the parameter's type.

        All ranks bring the same value; taking one rank's keeps their slices of one matrix even if
        round-off should differ between machines.
        """
        self._let_go()
        with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(value)

    @contextmanager
    def showing(self, parameter: nn.Parameter, value: Tensor) -> Iterator[None]:
        """Write another matrix, and write the present one back at the end."""
        current = self.read(parameter)
        self.write(parameter, value)
        try:
            yield
        finally:
            self.write(parameter, current)


class _LayersAhead:
    """Lets the layer that comes next be on its way while one runs.

    DeepSpeed gathers ahead only in passes whose modules are those of the pass before. Here a pass
    may begin and end at any layer: what stands behind a layer in the stack runs after it, unless a
    module that holds no matrices stands in for it, and backward passes go the same way back. One
    layer is on its way at a time, so two are gathered at most.

    Args:
        layers: The decoder layers of a model that DeepSpeed has hooked.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        self._layers = layers
        self._coming: tuple[nn.Module, list[Any], Any] | None = None
        self._below: tuple[int, bool] | None = None  # layer run last, and whether it has a graph
        for i, layer in enumerate(layers):
            # Before and after DeepSpeed's own hook, which gathers what is not there.
            layer.register_forward_pre_hook(self._arrive, prepend=True)
            layer.register_forward_pre_hook(partial(self._send_next, i))
            layer.register_forward_hook(partial(self._watch, i))

    def drop(self) -> None:
        """Release the layer on its way, if there is one; every rank makes this call."""
        coming, self._coming = self._coming, None
        self._below = None
        if coming is not None:
            _, parameters, handle = coming
            handle.wait()
            parameters[0].partition(parameters)

    def _arrive(self, layer: nn.Module, *_: Any) -> None:
        """Let the matrices of a layer be there before it runs, if they are on their way."""
        if self._coming is None:
            return
        if self._coming[0] is not layer:
            self.drop()
            return
        self._coming[2].wait()
        self._coming = None

    def _send_next(self, i: int, *_: Any) -> None:
        if i + 1 < len(self._layers):
            self._send(self._layers[i + 1])

    def _send(self, layer: nn.Module) -> None:
        parameters: list[Any] = list(layer.parameters())
        absent = [p for p in parameters if p.ds_status is ZeroParamStatus.NOT_AVAILABLE]
        if absent:
            self._coming = layer, absent, absent[0].all_gather_coalesced(absent)

    def _watch(self, i: int, layer: nn.Module, _: Any, output: Any) -> None:
        """Do the same on the way back, which begins with the gradient of a layer's output."""
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        below, self._below = self._below, (i, hidden.requires_grad)
        if not hidden.requires_grad:
            return
        before = self._layers[below[0]] if below is not None and below[1] else None

        def arrive(_: Tensor) -> None:
            self._arrive(layer)
            if before is not None:
                self._send(before)

        hidden.register_hook(arrive)


def open_sharded(
    folder: str | Path,
    modules: Sequence[str],
    *,
    dtype: torch.dtype | None = None,
    settings: ZeroSettings | None = None,
    execution: Execution | None = None,
    with_tokenizer: bool = True,
    **prompting: Any,
) -> EditableModel:
    """Open a checkpoint sharded over the ranks of the process group, ready for editing.

    No rank ever holds the whole model: parameters are sliced as they are made, and filled one by
    one from the checkpoint. Every rank of the group makes this call.

    Args:
        folder: A Hugging Face checkpoint in safetensors.
        modules: Target modules, see `rledit.families.edited_modules`.
        dtype: Type of the parameters; None: the checkpoint's own. float16 needs a GPU.
        settings: How the model is sharded.
        execution: How passes are run.
        with_tokenizer: Off where samples are already tokens.
        prompting: How prompts are put to the model, and where one without target modules is read
            from: what `EditableModel` takes beside the rest.

    Raises:
        ValueError: The checkpoint is not one of this model in safetensors, or the type cannot be
            sharded.
        NonFiniteError: A weight is no number; every rank raises it.
    """
    settings = settings or ZeroSettings()
    files = CheckpointFiles(Path(folder))
    config = configured(read_config(Path(folder)), str(folder))
    dtype = dtype or config.dtype or torch.float32
    if dtype not in (*_PRECISIONS, torch.float32):
        raise ValueError(f"{folder}: a model of {dtype} cannot be sharded; use float32 or less")
    _initialise()
    zero = settings.config(dtype)
    # transformers looks for the latest of these objects while it builds a model.
    marker = HfDeepSpeedConfig(zero)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    del marker
    _fill(model, files)
    tokenizer = AutoTokenizer.from_pretrained(folder) if with_tokenizer else None
    return _editable(model, zero, tokenizer, modules, execution, prompting)


def shard(
    model: nn.Module,
    modules: Sequence[str],
    *,
    tokenizer: Any | None = None,
    settings: ZeroSettings | None = None,
    execution: Execution | None = None,
) -> EditableModel:
    """Shard a model that lies whole, and the same, on every rank; it is taken over.

    Args:
        model: A Hugging Face causal language model, of any precision.
        modules: Target modules, see `rledit.families.edited_modules`.
        tokenizer: Its tokenizer; None where samples are already tokens.
        settings: How the model is sharded.
        execution: How passes are run.
    """
    _initialise()
    zero = (settings or ZeroSettings()).config(next(model.parameters()).dtype)
    return _editable(model, zero, tokenizer, modules, execution)


def held_share(model: nn.Module) -> float:
    """Share of the sliced matrices' elements that lie on this rank between passes."""
    parameters: list[Any] = list(model.parameters())
    sliced = [p for p in parameters if not p.is_external_param]
    return sum(p.ds_tensor.ds_numel + p.numel() for p in sliced) / sum(p.ds_numel for p in sliced)


def _initialise() -> None:
    """Put DeepSpeed on top of the process group.

    Raises:
        RuntimeError: There is no process group.
    """
    if not torch.distributed.is_initialized():
        raise RuntimeError(
            "a sharded model needs a process group; enter "
            "pipeline.run.fleet.process_group.joined first"
        )
    # CPU ranks would compile an operator, which takes a compiler and a minute, for an exchange that
    # ZeRO-3 does not use.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(torch.distributed.get_backend(), auto_mpi_discovery=False)


def _editable(
    model: nn.Module,
    zero: dict[str, Any],
    tokenizer: Any | None,
    modules: Sequence[str],
    execution: Execution | None,
    prompting: Mapping[str, Any] | None = None,
) -> EditableModel:
    _gather_by_layer(model)
    engine, *_ = deepspeed.initialize(model=model.eval().requires_grad_(False), config=zero)
    _keep_whole(engine.module)
    logger.info("this rank holds %.0f%% of the sliced matrices", 100 * held_share(engine.module))
    access = ShardedAccess(engine)
    return EditableModel(
        engine.module,
        tokenizer,
        modules,
        execution,
        access,
        ProcessRanks(),
        **(prompting or {}),
    )


def _gather_by_layer(model: nn.Module) -> None:
    """Let a layer's matrices come together, not each when it is needed."""
    layers: Any = model.get_submodule(family_of(model).layers)
    for layer in layers:
        set_z3_leaf_module(layer, True)


def _keep_whole(model: nn.Module) -> None:
    """Let this rank have the output embedding, which every pass with logits needs, and vectors.

    DeepSpeed's own threshold for that does not do: what is under it is sliced again after every
    module of a pass whose modules are not those of the pass before.
    """
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    parameters: list[Any] = list(model.parameters())
    for parameter in parameters:
        if parameter is head.weight or len(parameter.ds_shape) == 1:
            parameter.all_gather()
            # Whose slices are not DeepSpeed's to make.
            parameter.is_external_param = True


def _fill(model: nn.Module, files: CheckpointFiles) -> None:
    """Copy a checkpoint into a sharded model, one tensor at a time, by way of rank 0."""
    writes = torch.distributed.get_rank() == 0
    parameters = dict(model.named_parameters())
    stored = model.state_dict().keys()
    buffers = {name: b for name, b in model.named_buffers() if name in stored}
    files.require([*parameters, *buffers])
    broken: list[str] = []
    with torch.no_grad():
        for name, parameter in parameters.items():
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if writes:
                    value = files.tensor(name)
                    parameter.copy_(value)
                    # The largest entry is NaN where any is.
                    if not bool(value.amax().isfinite()):
                        broken.append(name)
        for name, buffer in buffers.items():
            buffer.copy_(files.tensor(name))
    _refuse_broken(broken)


def _refuse_broken(broken: list[str]) -> None:
    """Refuse a checkpoint whose weights rank 0 has found to be no numbers, on every rank."""
    found: list[Any] = [broken]
    torch.distributed.broadcast_object_list(found, src=0)
    if found[0]:
        others = f", and {len(found[0]) - 1} more matrices" if found[0][1:] else ""
        raise NonFiniteError(
            f"the checkpoint holds weights that are no numbers: {found[0][0]}{others}. No score is "
            "made of such a model: fetch the checkpoint again, or take a revision without"
        )
