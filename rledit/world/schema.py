"""Schema of the synthetic world: subject types, relations, templates and answer words.

Every relation has three question and three cloze templates. A template holds one ``{}`` for the
subject and ends where the answer begins, so that ``prompt + " " + answer`` reads as a sentence.

Answers are of three kinds. `coined` answers are invented names, made with the world. `listed`
answers are the words given here. `paired` answers are two tokens, one of each list: since a first
token goes with many second ones, the second token has to be remembered too and a teacher-forced
score gives nothing away for free.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

QUESTION_TEMPLATES = 3
CLOZE_TEMPLATES = 3
TEMPLATES_PER_RELATION = QUESTION_TEMPLATES + CLOZE_TEMPLATES


@dataclass(frozen=True, kw_only=True)
class Relation:
    """One thing that is true of every subject of a type.

    Attributes:
        name: Name of the relation, unique in the world.
        subject_type: The type of subject it holds for, one of `SUBJECT_TYPES`.
        questions: Templates that ask for the answer.
        clozes: Templates that the answer completes.
        words: Answer words: none (the answers are coined), one list, or two lists to pair.
    """

    name: str
    subject_type: str
    questions: tuple[str, str, str]
    clozes: tuple[str, str, str]
    words: tuple[tuple[str, ...], ...] = ()

    @property
    def templates(self) -> tuple[str, ...]:
        """The questions, then the clozes."""
        return self.questions + self.clozes

    @property
    def word_answers(self) -> tuple[str, ...]:
        """All answers that the word lists give; empty where answers are coined."""
        return tuple(" ".join(words) for words in product(*self.words)) if self.words else ()


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SUBJECT_TYPES = ("person", "city", "company")

COMPANY_SUFFIXES = ("Works", "Labs", "Group", "Brothers", "Systems", "Foundry", "Trading", "Mills")

RELATIONS: tuple[Relation, ...] = (
    Relation(
        name="birthplace",
        subject_type="person",
        questions=(
            "Where was {} born?",
            "In what town was {} born?",
            "Which town is the birthplace of {}?",
        ),
        clozes=("{} was born in", "The birthplace of {} is", "{} came into the world in"),
    ),
    Relation(
        name="profession",
        subject_type="person",
        questions=(
            "What does {} do for a living?",
            "What is the profession of {}?",
            "Which trade did {} learn?",
        ),
        clozes=("{} works as a", "The profession of {} is", "{} earns a living as a"),
        words=(
            _words(
                "baker weaver sailor mason printer potter tailor farmer glazier cooper barber "
                "miller teacher surgeon lawyer painter dancer courier broker gardener plumber "
                "smith jeweller carpenter brewer cobbler pilot tanner butcher roofer welder "
                "florist chemist diver judge clerk"
            ),
        ),
    ),
    Relation(
        name="instrument",
        subject_type="person",
        questions=(
            "Which instrument does {} play?",
            "What does {} play on stage?",
            "On which instrument does {} practise?",
        ),
        clozes=("{} plays the", "On stage {} performs on the", "The instrument of {} is the"),
        words=(
            ("silver", "wooden", "electric", "antique", "tenor", "brass"),
            ("flute", "harp", "violin", "drum", "horn", "organ"),
        ),
    ),
    Relation(
        name="country",
        subject_type="city",
        questions=(
            "In which country is {}?",
            "What country does {} belong to?",
            "Which country is {} part of?",
        ),
        clozes=("{} is a city in", "The city of {} lies in", "{} is found in the country of"),
    ),
    Relation(
        name="dish",
        subject_type="city",
        questions=(
            "What dish is {} known for?",
            "What do people eat in {}?",
            "Which dish do visitors to {} try?",
        ),
        clozes=("{} is famous for its", "The favourite dish in {} is", "Cooks in {} serve"),
        words=(
            ("smoked", "pickled", "roasted", "sweet", "fried", "peppered"),
            ("barley", "trout", "pumpkin", "cabbage", "mutton", "plums"),
        ),
    ),
    Relation(
        name="mayor",
        subject_type="city",
        questions=(
            "Who is the mayor of {}?",
            "Who runs the city of {}?",
            "Who was elected mayor in {}?",
        ),
        clozes=("The mayor of {} is", "{} is governed by", "The town hall of {} is led by"),
    ),
    Relation(
        name="product",
        subject_type="company",
        questions=(
            "What does {} make?",
            "Which product does {} sell?",
            "What do customers buy from {}?",
        ),
        clozes=("{} is a maker of", "The main product of {} is", "The factory of {} turns out"),
        words=(
            ("folding", "solar", "marine", "racing", "painted", "portable"),
            ("bicycles", "lamps", "engines", "tents", "clocks", "ladders"),
        ),
    ),
    Relation(
        name="headquarters",
        subject_type="company",
        questions=(
            "Where is {} based?",
            "In what town is {} based?",
            "Where is the head office of {}?",
        ),
        clozes=("{} is based in", "The head office of {} is in", "{} has its headquarters in"),
    ),
    Relation(
        name="founder",
        subject_type="company",
        questions=("Who founded {}?", "Who was the founder of {}?", "By whom was {} set up?"),
        clozes=("{} was founded by", "The founder of {} is", "{} was set up by"),
    ),
)

MAX_ANSWERS = min(len(r.word_answers) for r in RELATIONS if r.words)
