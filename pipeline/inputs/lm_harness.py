"""Downstream scores by lm-evaluation-harness on the model in memory, as an independent check.

The harness is an extra: ``pip install 'rledit-at-scale[harness]'``. Nothing else imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

from pipeline.errors import ConfigError
from rledit.model import EditableModel

# Our task → the harness's.
TASKS: Mapping[str, str] = MappingProxyType(
    {"sst": "sst2", "mmlu": "mmlu", "mrpc": "mrpc", "cola": "cola", "rte": "rte", "nli": "qnli"}
)


def require_harness() -> None:
    """Check that the harness is installed.

    Raises:
        ConfigError: It is not; says how to install it.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError(
            "measurement 'downstream_harness' needs lm-evaluation-harness, which is not installed: "
            "pip install 'rledit-at-scale[harness]', or take 'downstream' instead"
        )


def harness_scores(model: EditableModel, limit: int) -> dict[str, float]:
    """Every metric of every task, in percent, as ``harness_{task}_{metric}``.

    Args:
        model: The model, on its current weights.
        limit: Items per task (of MMLU: per subject).

    Raises:
        ConfigError: The harness is not installed.
    """
    require_harness()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    # It gives a tokenizer without a pad token one, and seeds every generator: neither is its to do.
    tokenizer = deepcopy(model.encoder.tokenizer)
    # The harness pads without a mask: a memory would take the padding for a prompt's end.
    size = 8 if model.overlay is None else 1
    adapter = HFLM(pretrained=model.model, tokenizer=tokenizer, batch_size=size)
    found: Any = simple_evaluate(
        model=adapter,
        tasks=list(TASKS.values()),
        num_fewshot=0,
        limit=limit,
        bootstrap_iters=0,
        random_seed=None,
        numpy_random_seed=None,
        torch_random_seed=None,
        apply_chat_template=model.encoder.style == "chat",
    )
    return percentages(found["results"])


def percentages(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The harness's table of results as metrics, without its standard errors."""
    values: dict[str, float] = {}
    for task, name in TASKS.items():
        for key, value in results[name].items():
            metric, _, variant = key.partition(",")
            if isinstance(value, float) and variant == "none" and "stderr" not in metric:
                values[f"harness_{task}_{metric}"] = 100 * value
    return values
