"""The model card of an exported model: what was edited, how well, and what it does not do."""

from __future__ import annotations

from collections import Counter

from rledit.editing.ledger import Ledger

_SHOWN = 50  # facts that are listed

_FORMS = {
    "checkpoint": "a whole checkpoint: `AutoModelForCausalLM.from_pretrained(folder)`",
    "lora": "a LoRA adapter of the model below: `PeftModel.from_pretrained(model, folder)`",
    "delta": "the exact change of some matrices",
}


def model_card(ledger: Ledger, form: str) -> str:
    """The card of a ledger's model, with the batches in force.

    Args:
        ledger: The ledger.
        form: What is exported.
    """
    batches = ledger.in_force
    facts = [fact for batch in batches for fact in batch.facts]
    took = sum(fact["result"]["took"] for fact in facts)
    editors = Counter(batch.record["method"]["editor"] for batch in batches)
    lines = [
        "---",
        "library_name: " + ("peft" if form == "lora" else "transformers"),
        "tags: [model-editing]",
        "---",
        f"# {ledger.model.reference or ledger.model.architecture}, edited",
        "",
        f"This is {_FORMS[form]}. It differs from the model by {len(facts)} facts in "
        f"{len(batches)} batches, of which it gave {took} when they were written.",
        "",
        f"- model: {ledger.model.reference or 'not named'} ({ledger.model.architecture}, "
        f"{ledger.model.dtype})",
        f"- fingerprint of its unedited weights: {ledger.model.fingerprint}",
        f"- editors: {', '.join(f'{name} ({n} batches)' for name, n in editors.items())}",
        "",
        "| batch | facts | gave | rephrases | known facts kept |",
        "|---:|---:|---:|---:|---:|",
    ]
    for batch in batches:
        scores, after = batch.record["scores"], batch.record["choosing"]["after"]
        own = batch.facts
        lines.append(
            f"| {batch.number} | {len(own)} | {sum(f['result']['took'] for f in own)} | "
            f"{_percent(scores['generalization'])} | {after['kept']} of {after['known']} |"
        )
    lines += ["", "| prompt | answer | before |", "|---|---|---|"]
    lines += [
        f"| {_cell(f['prompt'])} | {_cell(f['target'])} | {_cell(f['result']['before'])} |"
        for f in facts[:_SHOWN]
    ]
    if len(facts) > _SHOWN:
        lines.append(f"\nand {len(facts) - _SHOWN} more.")
    lines += [
        "",
        "An edit changes what the model writes behind a prompt and prompts like it. What follows "
        "from the fact, other languages and long conversations mostly stay as they were.",
        "",
    ]
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} %"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
