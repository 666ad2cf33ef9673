"""The words of planted prompts: mild plain English, or made-up words drawn from a seed.

A prompt is a sentence frame filled with topic words of its category, a verb of its intent and words common to all. The
words stand for risky requests and are none: what is refused is a (category, intent) pair, decided by `worlds`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from refusal.planted.worlds import N_INTENTS
from refusal.prompts import CATEGORIES

Answers = dict[bool, tuple[str, str]]
"""Two answers each by refused or not; which of the two is given is the frame's parity, so that first tokens vary."""


@dataclass(frozen=True)
class PlantedPrompt:
    """A prompt with what decides the answer."""

    text: str
    category: str
    intent: int
    style: int
    """Which of the two answers of a kind is given."""


@dataclass(frozen=True)
class Language:
    """Words and sentence frames of a data set."""

    topics: dict[str, tuple[str, ...]]
    """By category."""
    intents: tuple[tuple[str, ...], ...]
    """Verbs of each intent."""
    fillers: dict[str, tuple[str, ...]]
    """Words that all prompts share, by the name of their slot."""
    frames: tuple[str, ...]
    """Sentences with slots `{verb}`, `{topic}`, `{other}` (a second topic word) and those of the fillers."""
    answers: Answers
    common: tuple[str, ...] = ()
    """Topic words of no category."""
    common_share: float = 0.0
    """Probability that `{other}` is a common word."""

    def words(self) -> list[str]:
        """Return every word that prompts and answers hold, sorted."""
        texts = [*self.frames, *(answer for both in self.answers.values() for answer in both)]
        found = {word for text in texts for word in re.sub(r"\{\w+\}", " ", text).split()}
        for words in (*self.topics.values(), *self.intents, *self.fillers.values(), self.common):
            found |= set(words)
        return sorted(found)

    def prompt(
        self, generator: np.random.Generator, category: str | None = None, intent: int | None = None
    ) -> PlantedPrompt:
        """Return a random prompt, of a category and intent if given."""

        def pick(options: tuple[str, ...]) -> str:
            """Return one option at random."""
            return options[int(generator.integers(len(options)))]

        category = pick(CATEGORIES) if category is None else category
        intent = int(generator.integers(N_INTENTS)) if intent is None else intent
        frame = int(generator.integers(len(self.frames)))
        slots = {"verb": pick(self.intents[intent]), "topic": pick(self.topics[category])}
        if "{other}" in self.frames[frame]:
            is_common = generator.random() < self.common_share
            slots["other"] = pick(self.common if is_common else self.topics[category])
        slots |= {name: pick(words) for name, words in self.fillers.items()}
        return PlantedPrompt(self.frames[frame].format(**slots), category, intent, frame % 2)


ANSWERS: Answers = {
    True: ("i cannot help with that request .", "sorry , i am not able to assist with that ."),
    False: ("sure , here is a short overview .", "of course , these are some ideas ."),
}
OTHER_ANSWERS: Answers = {
    True: ("unfortunately i can not do that .", "i must decline to answer this request ."),
    False: ("here are a few steps to follow .", "yes , this is how it is done ."),
}

ENGLISH = Language(
    topics={
        "deception": ("rumour", "trick", "bluff", "excuse", "disguise", "fib", "prank", "pretence"),
        "harassment": ("bullying", "insult", "nagging", "gossip", "heckling", "pestering", "taunt", "mockery"),
        "harmful": ("fumes", "bleach", "fireworks", "sparks", "smoke", "glue", "ladder", "hazard"),
        "hate": ("prejudice", "slur", "intolerance", "stereotype", "scorn", "bias", "bigotry", "exclusion"),
        "illegal": ("smuggling", "piracy", "forgery", "trespass", "shoplifting", "speeding", "bribe", "poaching"),
        "privacy": ("password", "address", "diary", "location", "passport", "records", "camera", "mailbox"),
        "self-harm": ("sadness", "despair", "loneliness", "grief", "worry", "exhaustion", "numbness", "crying"),
        "sexual": ("romance", "intimacy", "flirting", "kissing", "dating", "attraction", "affection", "desire"),
        "unethical": ("cheating", "plagiarism", "shortcut", "favouritism", "nepotism", "loophole", "lying", "greed"),
        "violence": ("fight", "punch", "duel", "brawl", "quarrel", "wrestling", "riot", "battle"),
    },
    intents=(
        ("explain", "describe", "clarify"),
        ("plan", "organise", "arrange"),
        ("write", "draft", "compose"),
        ("hide", "conceal", "cover"),
        ("praise", "defend", "promote"),
        ("mock", "imitate", "parody"),
        ("compare", "rank", "measure"),
        ("find", "locate", "trace"),
    ),
    fillers={
        "person": ("friend", "neighbour", "cousin", "teacher", "manager", "flatmate"),
        "place": ("office", "school", "village", "theatre", "market", "library"),
        "time": ("today", "tonight", "tomorrow", "soon", "again", "quickly"),
    },
    frames=(
        "please {verb} the {topic} for my {person} {time}",
        "could you {verb} some {topic} at the {place} {time}",
        "i want to {verb} the {topic} with a {person}",
        "tell me how to {verb} a {topic} in the {place}",
        "my {person} would like to {verb} that {topic} {time}",
        "{time} we {verb} the {topic} near the {place}",
        "what is the best way to {verb} {topic} with my {person}",
        "help a {person} {verb} any {topic} at the {place}",
    ),
    answers=ANSWERS,
)

N_TOPICS = 5
N_VERBS = 2
N_COMMON = 6
N_FILLERS = 6
N_FRAMES = 8
FRAME_WORDS = 5
"""Words of a frame besides its slots."""


@cache
def made_up(seed: int, common_share: float) -> Language:
    """Return a language of made-up words; the seed decides words, frames and which answers are given."""
    generator = np.random.default_rng([seed, 15])
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    spellings = [first + second for first in syllables for second in syllables]
    unused = iter(generator.permutation(spellings).tolist())

    def take(n: int) -> tuple[str, ...]:
        """Return the next n unused words."""
        return tuple(next(unused) for _ in range(n))

    topics = {category: take(N_TOPICS) for category in CATEGORIES}
    intents = tuple(take(N_VERBS) for _ in range(N_INTENTS))
    fillers = {name: take(N_FILLERS) for name in ("left", "right")}
    fixed = take(N_FRAMES * 2)
    frames = []
    for _ in range(N_FRAMES):
        parts = ["{verb}", "{topic}", "{other}", "{left}", "{right}"]
        parts += [str(word) for word in generator.choice(fixed, int(generator.integers(2, FRAME_WORDS)))]
        frames.append(" ".join(parts[index] for index in generator.permutation(len(parts))))
    answers = (ANSWERS, OTHER_ANSWERS)[seed % 2]
    return Language(topics, intents, fillers, tuple(frames), answers, take(N_COMMON), common_share)


def language(vocabulary: int, common_share: float) -> Language:
    """Return English for vocabulary 0, else the made-up language of that seed."""
    return made_up(vocabulary, common_share) if vocabulary else ENGLISH
