"""Instructions in front of edit prompts, as InstructEdit has them (arXiv 2402.16123).

An instruction names a task and describes it in a sentence; the prompt follows in a line of its own.
Each task has ten descriptions, all worded for this project: training draws from the first nine, and
the tenth is never trained on, so that it tests an instruction that was not seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rledit.names import look_up

TRAINED_ON = 9
"""Descriptions of a task that training draws from; the one behind them is held out."""


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """What stands around an edit prompt.

    Attributes:
        task: The task's name, as the model reads it.
        description: A sentence that describes the task.
    """

    task: str
    description: str

    def around(self, prompt: str) -> str:
        """The prompt as it is asked."""
        return f"Task: {self.task}\nDescription: {self.description}\nInput: {prompt}"


@dataclass(frozen=True, kw_only=True)
class EditTask:
    """A kind of edits.

    Attributes:
        title: Its name, as the model reads it.
        descriptions: Ten of them; the last is held out of training.
    """

    title: str
    descriptions: tuple[str, ...]

    def instruction(self, number: int) -> Instruction:
        """The instruction with a description, counted from 1."""
        return Instruction(task=self.title, description=self.descriptions[number - 1])

    @property
    def trained_on(self) -> tuple[Instruction, ...]:
        """The instructions that training draws from."""
        return tuple(self.instruction(n) for n in range(1, TRAINED_ON + 1))


TASKS: Mapping[str, EditTask] = {
    "facts": EditTask(
        title="fact completion",
        descriptions=(
            "Complete the text with the fact as it now stands.",
            "A fact has changed; finish the sentence with its present value.",
            "Give the up-to-date answer that belongs behind the text.",
            "Continue the input so that it states the revised fact.",
            "Supply what is currently true of the thing that is named.",
            "Write the corrected piece of knowledge behind the input.",
            "State the new value of the relation that the input asks for.",
            "Recall the latest version of the fact and complete it.",
            "Fill in the end of the text according to the newest record.",
            "End the input with the answer that replaces the old one.",
        ),
    ),
    "counterfact": EditTask(
        title="statement rewriting",
        descriptions=(
            "Finish the statement about the subject with its rewritten value.",
            "Complete the sentence as it reads in a changed world.",
            "The attribute of the subject was replaced; name the new one.",
            "Continue the statement with the value it has been given.",
            "Say which object the subject is now related to.",
            "End the statement as the altered record has it.",
            "Complete the claim with the attribute that was put in place.",
            "Give the object that makes the rewritten statement complete.",
            "Write the last words of the statement after its revision.",
            "Close the sentence with what the subject has been assigned.",
        ),
    ),
    "zsre": EditTask(
        title="question answering",
        descriptions=(
            "Answer the question about an entity in a few words.",
            "Reply to the question with the name or value it asks for.",
            "Give the short answer that is now right for this question.",
            "Read the question and state the updated answer.",
            "Answer briefly, using what is currently known of the entity.",
            "Name what the question is looking for.",
            "Provide the corrected answer to the question.",
            "Respond to the query with the present fact and nothing else.",
            "Find the answer that the latest knowledge gives.",
            "Tell in a word or two what was asked.",
        ),
    ),
    "fever": EditTask(
        title="claim verification",
        descriptions=(
            "Decide whether the claim holds and give the verdict.",
            "Judge the claim by what is known at present.",
            "Say if the statement is supported.",
            "Check the claim and answer with its label.",
            "Give the updated verdict on this statement.",
            "Determine whether the evidence agrees with the claim.",
            "Label the claim as the corrected record does.",
            "State the outcome of verifying the input.",
            "Assess the statement and return its verdict.",
            "Tell whether one should believe the claim.",
        ),
    ),
    "recent": EditTask(
        title="recent knowledge",
        descriptions=(
            "Complete the text about something that happened lately.",
            "Answer with the most recent state of affairs.",
            "The world has moved on; give the current answer.",
            "Add the newly reported fact to the input.",
            "Continue with what recent records say.",
            "State the value as of the newest snapshot.",
            "Bring the text up to date and finish it.",
            "Give the answer that holds since the last change.",
            "Finish the input with fresh information.",
            "Report how things stand today.",
        ),
    ),
}

_OF_SCHEMA = {
    "counterfact": "counterfact",
    "zsre": "zsre",
    "fever": "fever",
    "wikibigedit": "recent",
}


def task_of(schema: str | None) -> str:
    """The task of a dataset's schema; plain facts where none is known."""
    return _OF_SCHEMA.get((schema or "").partition("_")[0], "facts")


def instruction_of(task: str, number: int) -> Instruction | None:
    """A task's instruction by the number of its description; None for number 0.

    Raises:
        UnknownNameError: There is no such task.
        ValueError: There is no such description.
    """
    found = look_up(TASKS, task, "task")
    if not 0 <= number <= len(found.descriptions):
        raise ValueError(
            f"task {task!r} has descriptions 1 to {len(found.descriptions)}, or 0 for none, not "
            f"{number}"
        )
    return found.instruction(number) if number else None
