"""Configurations of tiny models of newer listed families, and of those found from their classes."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 40,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_SLIDING = ["sliding_attention", "full_attention"] * 2
_GPT2: dict[str, Any] = {
    "n_embd": 16, "n_inner": 24, "n_layer": 4, "n_head": 2, "n_positions": 32,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip

# Listed, and what their config.json brings.
LISTED: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 8},
    "gemma3_text": {
        "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8, "layer_types": _SLIDING,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        },
    },
    "phi3": {"sliding_window": 4},
}  # fmt: skip

# What each family has beside the sizes: whatever makes it unlike Llama.
UNLIKE: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 8},
    "phi": {"partial_rotary_factor": 0.5},
    "gpt_neox": {"use_parallel_residual": True, "rotary_pct": 0.5},
    "gpt2": _GPT2,
    "olmo2": {},
    "olmo3": {"sliding_window": 4, "layer_types": _SLIDING},
    # Scaled residuals, embeddings, logits.
    "granite": {
        "residual_multiplier": 0.22, "embedding_multiplier": 12.0, "logits_scaling": 8.0,
        "attention_multiplier": 0.1,
    },
    "minicpm3": {
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4,
        "v_head_dim": 8, "head_dim": 4, "num_key_value_heads": 2, "scale_emb": 12,
        "scale_depth": 1.4, "dim_model_base": 8,
    },
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 4, "layer_types": _SLIDING, "head_dim": 8},
    # Residuals side by side, biases, layer norms, positions of other kinds.
    "falcon": {
        "num_kv_heads": 1, "new_decoder_architecture": True, "parallel_attn": True,
        "ffn_hidden_size": 24, "alibi": False,
    },
    "stablelm": {"use_parallel_residual": True, "use_qkv_bias": True},
    "starcoder2": {"sliding_window": 4},
    "smollm3": {"no_rope_layers": [1, 0, 1, 0], "use_sliding_window": False},
    "glm4": {"head_dim": 8},
    "exaone4": {"sliding_window": 4, "layer_types": _SLIDING},
    "bloom": {"n_layer": 4, "n_head": 2},
    "nemotron": {"head_dim": 8},
}  # fmt: skip

# Less common; each is unlike those above in little.
RARER: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "codegen": {**_GPT2, "n_head": 4, "rotary_dim": 4},
    "glm": {"head_dim": 8},
    "gpt_bigcode": _GPT2,
    "gpt_neo": {
        "num_layers": 4, "num_heads": 2, "attention_types": [[["global", "local"], 2]],
        "window_size": 4, "resid_dropout": 0.0, "embed_dropout": 0.0, "attention_dropout": 0.0,
    },
    "helium": {"head_dim": 8},
    "ministral3": {"head_dim": 8},
    "mpt": {
        "d_model": 16, "n_heads": 2, "n_layers": 4, "expansion_ratio": 2, "max_seq_len": 32,
        "resid_pdrop": 0.0, "emb_pdrop": 0.0,
    },
    "nanochat": {},
    "olmo": {},
    "persimmon": {},
    "seed_oss": {"head_dim": 8},
}  # fmt: skip
DESCRIBED = tuple(UNLIKE)


def tiny_config(family: str) -> PretrainedConfig:
    """The configuration of a tiny model of such a family."""
    own = {**LISTED, **UNLIKE, **RARER}.get(family, {})
    whole = any(key in own for key in ("n_embd", "d_model"))
    sizes = {k: v for k, v in SIZES.items() if not whole or not k.startswith(("hidden", "num_"))}
    if whole:
        for name in ("intermediate_size", "max_position_embeddings"):
            sizes.pop(name)
    return AutoConfig.for_model(family, **{**sizes, **own})
