"""Tiny models that have learnt some answers by heart, with a tokenizer like those of large models.

A random model is wrong nearly everywhere, so that two ways of scoring it agree on zeros. One that
knows half of what it is asked makes every score take both of its values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as Decoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import AutoModelForCausalLM, GPTJConfig, LlamaConfig, PreTrainedTokenizerFast

from rledit.bos import written_around

LONGEST = 256
BOS, EOS = "<s>", "</s>"

TrainingExample = tuple[str, str]
"""A prompt and the answer to be learnt for it, right or wrong."""


def byte_pair_tokenizer(
    texts: Sequence[str], size: int = 1500, bos: bool = True
) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on these texts: an answer has several tokens, with its space.

    Its post-processor writes BOS before a text, as Llama-3's does, or not.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = Decoder()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=[BOS, EOS],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def small_model(family: str, tokenizer: PreTrainedTokenizerFast) -> nn.Module:
    """A model of that family with a random start."""
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config: Any = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=LONGEST, initializer_range=0.08, **ends,
    )  # fmt: skip
    if family == "gptj":
        config = GPTJConfig(
            vocab_size=len(tokenizer), n_embd=64, n_inner=128, n_layer=2, n_head=2, rotary_dim=16,
            n_positions=LONGEST, initializer_range=0.08, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, **ends,
        )  # fmt: skip
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def learn(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[TrainingExample],
    *,
    steps: int = 120,
    enough: float = 0.02,
    only: str = "",
) -> float:
    """Teach a model the answers, each with its end.

    Args:
        model: Taught in place.
        tokenizer: Its tokenizer.
        examples: What to learn.
        steps: Most passes over the lessons.
        enough: The loss at which it has learnt them.
        only: A part of the names of the parameters that may change.

    Returns:
        The last loss, in nats a token.
    """
    rows, labels = _padded(tokenizer, examples)
    chosen = [p for name, p in model.named_parameters() if only in name]
    optimiser = torch.optim.Adam(chosen, lr=5e-3)
    loss = float("inf")
    model.train()
    for _ in range(steps):
        logits = model(input_ids=rows).logits[:, :-1]
        found = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimiser.zero_grad()
        found.backward()
        optimiser.step()
        if (loss := found.item()) < enough:
            break
    model.eval()
    return loss


def _padded(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[TrainingExample]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(lessons, longest) tokens, and the same with -100 off the answers. Padding is to the right,
    where no causal model sees it."""
    bos, _ = written_around(tokenizer)
    pairs = []
    for prompt, answer in examples:
        head = [*bos, *tokenizer(prompt.rstrip(), add_special_tokens=False)["input_ids"]]
        tail = tokenizer(f" {answer.strip()}", add_special_tokens=False)["input_ids"]
        pairs.append((head, [*tail, tokenizer.eos_token_id]))
    width = max(len(head) + len(tail) for head, tail in pairs)
    rows = torch.zeros(len(pairs), width, dtype=torch.long)
    labels = torch.full_like(rows, -100)
    for row, label, (head, tail) in zip(rows, labels, pairs, strict=True):
        end = len(head) + len(tail)
        row[:end] = torch.tensor([*head, *tail])
        label[len(head) : end] = torch.tensor(tail)
    return rows, labels
