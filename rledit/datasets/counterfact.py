"""CounterFact (arXiv 2202.05262): the original nested schema, and the flat one of EasyEdit.

The original holds two paraphrases, which all become rephrases in their order, and ten neighbours,
which all become locality probes whose answer is the fact's true answer. Generation prompts begin
texts for fluency and consistency; attribute prompts stay out.

The flat file keeps one of each, and its rephrase is often one of the original's *generation*
prompts ("... is known for"), which asks something else than the edit.
"""

from __future__ import annotations

from rledit.datasets.fields import Fields, Place, Row, fill_template
from rledit.datasets.format import (
    RELATION,
    REPHRASE,
    SUBJECT,
    UNRELATED,
    UNRELATED_ANSWER,
    Format,
    named,
    probe,
)
from rledit.datasets.probes import PORTABILITY, portability
from rledit.records import Edit, Locality

_SENTENCE_BREAKS = set('.!?:;)]"”\n')


def read_original(row: Row, place: Place) -> list[Edit]:
    """One edit of the nested schema."""
    fields = Fields(row, place)
    rewrite = fields.child("requested_rewrite")
    subject = rewrite.text("subject")
    prompt, span = fill_template(rewrite, "prompt", subject)
    old = rewrite.child("target_true").optional("str")
    neighbours = fields.texts("neighborhood_prompts")
    if neighbours and old is None:
        rewrite.child("target_true").fail("str", "is blank, but the neighbourhood prompts need it")
    return [
        Edit(
            edit_id=f"counterfact:{place.row}",
            prompt=prompt,
            target=rewrite.child("target_new").answer("str"),
            rephrases=fields.texts("paraphrase_prompts"),
            locality=tuple(Locality(prompt=p, answer=old or "") for p in neighbours),
            old_target=old,
            subject=subject,
            subject_span=span,
            relation=rewrite.optional("relation_id"),
            source=str(place),
            generation_prompts=fields.texts("generation_prompts"),
            reference_key=_reference_key(rewrite),
            consequences=portability(fields),
        )
    ]


def _reference_key(rewrite: Fields) -> str | None:
    """The relation and the new target, by which the published snippets are filed."""
    relation, target = rewrite.optional("relation_id"), rewrite.child("target_new").optional("id")
    return None if relation is None or target is None else f"{relation}/{target}"


def read_flat(row: Row, place: Place) -> list[Edit]:
    """One edit of the flat schema."""
    fields = Fields(row, place)
    return [
        Edit(
            edit_id=f"counterfact_flat:{place.row}",
            prompt=fields.text("prompt"),
            target=fields.answer("target_new"),
            rephrases=fields.texts("rephrase_prompt"),
            locality=probe(fields, "locality_prompt", "locality_ground_truth"),
            old_target=fields.optional("ground_truth"),
            subject=fields.optional("subject"),
            relation=fields.optional("relation"),
            source=str(place),
            consequences=portability(fields),
        )
    ]


def observe_flat(row: Row) -> tuple[str, ...]:
    """Recognise a generation prompt in place of the rephrase.

    The original's paraphrases open with an unrelated sentence before the statement; its generation
    prompts never do. So a rephrase without a sentence break before the subject is taken for one.
    """
    found, subject = row.get("rephrase_prompt"), row.get("subject")
    rephrase = found[0] if isinstance(found, list) and found else found
    if not isinstance(rephrase, str) or not isinstance(subject, str) or not subject:
        return ()
    if subject not in rephrase:
        return ()
    lead = rephrase.partition(subject)[0]
    return () if _SENTENCE_BREAKS & set(lead) else ("rephrase_generation_prompt",)


ORIGINAL = Format(
    name="counterfact",
    title="CounterFact, original schema, also multi_counterfact (arXiv 2202.05262, 2210.07229)",
    required=("requested_rewrite", "paraphrase_prompts", "neighborhood_prompts"),
    aliases={
        **named("paraphrase_prompts", REPHRASE),
        "neighborhood_prompts": ("neighbourhood_prompts", "neighborhood_prompt"),
        **PORTABILITY,
    },
    read=read_original,
    protocols=("choice", "choice_official", "token_accuracy", "wild"),
    measurements=("fluency", "consistency"),
    example={
        "case_id": 7,
        "requested_rewrite": {
            "prompt": "The ferry {} sails from",
            "subject": "Maribel",
            "target_new": {"str": "Esbjerg", "id": "Q0"},
            "target_true": {"str": "Oban", "id": "Q0"},
        },
        "paraphrase_prompts": ["It rained all week. Maribel leaves the harbour of"],
        "neighborhood_prompts": [
            "The ferry Colonsay sails from",
            "The ferry Tiree sails from",
        ],
    },
)
FLAT = Format(
    name="counterfact_flat",
    title="CounterFact, flat schema of EasyEdit (arXiv 2308.07269)",
    required=(
        "prompt",
        "target_new",
        "ground_truth",
        "rephrase_prompt",
        "locality_prompt",
        "locality_ground_truth",
    ),
    aliases={
        "prompt": ("question",),
        "target_new": ("target",),
        "ground_truth": ("target_true",),
        **named("subject", SUBJECT),
        **named("relation", RELATION),
        **named("rephrase_prompt", REPHRASE),
        **named("locality_prompt", UNRELATED),
        **named("locality_ground_truth", UNRELATED_ANSWER),
        **PORTABILITY,
    },
    read=read_flat,
    protocols=("choice", "choice_official", "token_accuracy", "wild"),
    observe=observe_flat,
    example={
        "prompt": "The ferry Maribel sails from",
        "target_new": "Esbjerg",
        "subject": "Maribel",
        "ground_truth": "Oban",
        "rephrase_prompt": "It rained all week. Maribel leaves the harbour of",
        "locality_prompt": "The ferry Colonsay sails from",
        "locality_ground_truth": "Oban",
    },
)
