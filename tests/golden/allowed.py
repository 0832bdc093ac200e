"""Exceptions of the golden comparison, each with its reason."""

from __future__ import annotations

import fnmatch

# Patterns of "source:name"; source is a file of the set, or runs/RUN for the manifest's numbers.
VALUES: dict[str, str] = {
    "*:loss2d/*": "binary classification on one-column logits; no editor here uses it",
    "runs/*:min_top2_margin": "tells how close the recording is to a tie; not a result",
    "runs/*:min_relu_margin": "tells how close the recording is to a kink; not a result",
    "runs/*:relu_off_fraction": "tells that the recording exercises both ReLU sides; not a result",
    "runs/*:settings/set/*": "how models and data were generated; sizes are read from the files",
    "runs/*:settings/repo": "which release was recorded; the editor's name says which method",
    "runs/*:settings/threads": "one thread always",
    "runs/*:settings/torch": "version of the recording",
    "runs/*:settings/transformers": "version of the recording",
    "runs/*:settings/editor/cache_dir": "no effect on numbers",
    "runs/*:settings/editor/save_checkpoint": "no effect on numbers",
    "runs/*:settings/editor/load_checkpoint": "no effect on numbers",
    "runs/*:settings/editor/n_test": "no effect on numbers",
    "runs/*:settings/editor/full_curve": "no effect on numbers",
    "runs/*:settings/editor/batch_size": "rows per network pass; no effect on numbers",
    "*/nse.safetensors:*": "neuron-level sequential editing is not among the methods offered",
    "*/nse_repo.safetensors:*": "neuron-level sequential editing is not among the methods offered",
    "runs/*:hparams/NSE/*": "neuron-level sequential editing is not among the methods offered",
    "runs/*:hparams/*/model_name": "a name; the model is in the set",
    "runs/*:hparams/*/mom2_dataset": "a name; the corpus is in the set",
    "runs/*:hparams/*/mom2_n_samples": "the corpus is in the set",
    "runs/*:hparams/AlphaEdit/mom2_update_weight": "the method weighs no key covariance",
    "runs/*:hparams/*/context_template_length_params": "the contexts are in the set",
    "runs/*:P_f32_vs_f64_maxabs": "how well the recording reproduces itself; not a result",
}


def reason_for(source: str, name: str) -> str | None:
    """Why a value may stay uncompared; None: it may not."""
    for pattern, reason in VALUES.items():
        if fnmatch.fnmatchcase(f"{source}:{name}", pattern):
            return reason
    return None


def is_allowed(source: str, name: str) -> bool:
    """Whether a value may stay uncompared."""
    return reason_for(source, name) is not None
