"""Look at a run's edits through the model's tokenizer before anything expensive starts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from pipeline.cells import Cell
from pipeline.run.stages.prepare import checkpoint_folder
from pipeline.yaml_location import ConfigError
from rledit.families import FAMILIES
from rledit.tokenization import Encoder, TokenizationError
from rledit.world import world_encoder


def preflight(cells: Sequence[Cell]) -> None:
    """Tokenise every stream once.

    Raises:
        ConfigError: An edit breaks the token contract; names file, row and reason.
    """
    seen: set[tuple[str, str, int, int]] = set()
    for cell in cells:
        what = (cell.model.name, cell.dataset.name, cell.n_edits, cell.seed)
        if what in seen:
            continue
        seen.add(what)
        encoder = _encoder(cell)
        edits = cell.source().draw(cell.dataset.split, cell.n_edits, seed=cell.seed)
        try:
            encoder.batch(edits, group_size=1)
        except TokenizationError as error:
            raise ConfigError(f"{cell.path}: {error}") from None


def _encoder(cell: Cell) -> Encoder:
    if cell.model.checkpoint is None:
        return world_encoder(cell.world(), cell.model_spec)
    return _checkpoint_encoder(cell.model.checkpoint)


@lru_cache(maxsize=4)
def _checkpoint_encoder(checkpoint: str) -> Encoder:
    folder = checkpoint_folder(checkpoint)
    config: Any = AutoConfig.from_pretrained(folder)
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"checkpoint {checkpoint!r}: family {config.model_type!r} is not one of "
            f"{', '.join(sorted(FAMILIES))}"
        )
    limit = getattr(config, "max_position_embeddings", None)
    return Encoder(AutoTokenizer.from_pretrained(folder), FAMILIES[config.model_type], limit)
