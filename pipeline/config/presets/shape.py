"""Sizes of a language model: those of its configuration, and the parameters they come to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a decoder as its configuration gives them.

    Attributes:
        layers: Number of decoder layers.
        hidden: Width of the residual stream.
        intermediate: Width of the MLP.
        heads: Number of attention heads.
        kv_heads: Number of key-value heads.
        head_dim: Width of a head.
        vocabulary: Rows of the embedding.
        gated: Whether the MLP has a gate beside its two linear layers.
        tied: Whether input and output embedding are one matrix.
        norms: Normalisation vectors of width `hidden` in a layer, biases counted.
        head_norms: Normalisation vectors of width `head_dim` in a layer, as of queries and keys.
        qkv_bias: Whether the query, key and value projections have biases.
        mlp_bias: Whether the MLP's linear layers have biases.
        head_bias: Whether the output embedding has a bias.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    gated: bool = True
    tied: bool = False
    norms: int = 2
    head_norms: int = 0
    qkv_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False

    @property
    def layer_parameters(self) -> int:
        """Parameters of one decoder layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * queries + 2 * keys)
        mlp = (3 if self.gated else 2) * self.hidden * self.intermediate
        biases = (queries + 2 * keys) * self.qkv_bias
        biases += (self.intermediate + self.hidden) * self.mlp_bias
        norms = self.norms * self.hidden + self.head_norms * self.head_dim
        return attention + mlp + biases + norms

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        # A layer normalisation has a bias where its layers' normalisations have.
        final_norm = self.hidden * (2 if self.mlp_bias else 1)
        head_bias = self.vocabulary * self.head_bias
        return embeddings + self.layers * self.layer_parameters + final_norm + head_bias


def layer_numbers(shorthand: str, n_layers: int) -> list[int]:
    """The layers of a shorthand ``kind:layers``, e.g. ``down:17,18`` or ``gate:11-15``."""
    _, _, text = shorthand.partition(":")
    if text == "all":
        return list(range(n_layers))
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers
