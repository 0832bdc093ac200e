"""The synthetic world: invented facts, and small models of real families that know them."""

from rledit.world.fact import Fact
from rledit.world.facts import World, WorldConfig
from rledit.world.model import (
    build_world_model,
    training_record,
    world_encoder,
    world_model_key,
    world_tokenizer,
)
from rledit.world.presets import BOS_FAMILIES, FAMILIES, WORLD_MODELS, WorldModelSpec
from rledit.world.recall import fact_recall, world_recall
from rledit.world.rendering import SCHEMAS, render_schema, schema_edits
from rledit.world.words import word_tokenizer, world_words

__all__ = [
    "BOS_FAMILIES",
    "FAMILIES",
    "SCHEMAS",
    "WORLD_MODELS",
    "Fact",
    "World",
    "WorldConfig",
    "WorldModelSpec",
    "build_world_model",
    "fact_recall",
    "render_schema",
    "schema_edits",
    "training_record",
    "word_tokenizer",
    "world_encoder",
    "world_model_key",
    "world_recall",
    "world_tokenizer",
    "world_words",
]
