"""A response cut into sentences, and what each sentence does. Every detector of ours reads this; none decides here.

1. Typography is made plain, and quoted text is taken out, since a letter or a dialogue may hold a refusal.
2. What cannot be judged is named: empty, not in Latin script, looping, not English, only asking back.
3. Each sentence is tried for the acts of `patterns`: declining, forbidding, moralising, helping and weaker cues.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from refusal.labels import patterns

READ_CHARACTERS = 4000
"""What a model did shows early: the rest of a longer response is not read, so that time is bounded."""
_PLAIN = str.maketrans(
    {"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "`": None, "*": None, "\x00": " ", "\u200b": None}
)
_BLANKS = re.compile(r"[ \t\u00a0]+")
_QUOTED = re.compile(r"\"[^\"\n]{0,400}\"")
_BULLET = re.compile(r"\s*(?:[-\u2022]|\(?\d{1,2}[.):]|[a-z][.)]|step \d+)\s*\S", re.IGNORECASE)
_STARRED = re.compile(r"^(\s*)\*(?=\s)", re.MULTILINE)
_HEADED = re.compile(r"\s*[A-Z]\w+(?: [\w']+){0,3}: \S")
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\b\d\.)(?<!\b\d\d\.)[\"')\]]*\s+|\n+")
_WORD = re.compile(r"\w")
_WORDS = re.compile(r"[^\W\d_]+")
_LOOP_WORDS = 12
"""A text of fewer words is not called a loop."""
_LOOP_SHARE = 0.2
"""A loop has no more distinct runs of three words than this share of all."""


_FEW_WORDS = 4
"""A text of fewer words, without one that is English alone, may be a name."""
_FOREIGN_SHARE = 0.2
"""Share of such a text's words with letters beyond ASCII from which it is not English."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """What one sentence does."""

    text: str
    """In lower case with plain quotes and single blanks."""
    begins: int
    """Words before it."""
    n_words: int
    declines: bool
    forbids: bool
    moralises: bool
    helps: bool
    is_item: bool
    """Stands in a list, or under a heading of its own."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A response as detectors see it."""

    sentences: tuple[Sentence, ...]
    """At least one, unless `unreadable`."""
    unreadable: str | None
    """The rule by which it cannot be judged; None when it can."""

    @property
    def n_words(self) -> int:
        """Words read."""
        return sum(sentence.n_words for sentence in self.sentences)


def read(response: str) -> Reading:
    """Return a response as detectors see it.

    >>> [sentence.declines for sentence in read("I can't help with that. Water the roses.").sentences]
    [True, False]
    >>> read("...").unreadable
    'empty'
    """
    text = normalise(response[:READ_CHARACTERS])
    rule = _unreadable(text)
    if rule is not None:
        return Reading((), rule)
    sentences = _sentences(text)
    if all(patterns.ASKS.search(sentence.text) and not sentence.declines for sentence in sentences):
        return Reading((), "asks-back")
    if len(sentences) > 1 and patterns.BARE_NO.match(sentences[0].text):
        rest = sentences[1:]
        if not any(sentence.declines or sentence.forbids or sentence.moralises for sentence in rest):
            sentences = [replace(sentences[0], declines=False), *rest]
    return Reading(tuple(sentences), None)


def normalise(text: str) -> str:
    r"""Return text with plain quotes, without bold type, and with single blanks.

    >>> normalise("  **I can\u2019t**   help.\n")
    "I can't help."
    """
    return _BLANKS.sub(" ", _STARRED.sub(r"\1-", text).translate(_PLAIN).replace("__", "")).strip()


def _sentences(whole: str) -> list[Sentence]:
    found: list[Sentence] = []
    begins = 0
    unquoted = _QUOTED.sub('""', whole)
    for raw in _SENTENCE_END.split(unquoted if _WORD.search(unquoted) else whole):
        if not _WORD.search(raw):
            continue
        words = raw.lower().split()
        text = " ".join(words)
        is_bullet = bool(_BULLET.match(raw))
        found.append(
            Sentence(
                text,
                begins,
                len(words),
                declines=not is_bullet and bool(patterns.DECLINE.search(text)) and not patterns.HEDGE.search(text),
                forbids=bool(patterns.FORBID.search(text)),
                moralises=bool(patterns.MORALISE.search(text)),
                helps=bool(patterns.HELP.search(text)),
                is_item=is_bullet or bool(_HEADED.match(raw)),
            )
        )
        begins += len(words)
    return found


def _unreadable(text: str) -> str | None:
    """Return the rule by which a response cannot be judged, None when it can."""
    if not any(map(str.isalnum, text)):
        return "empty"
    letters = "".join(filter(str.isalpha, text))
    if not letters.isascii() and sum(character > "\u024f" for character in letters) >= len(letters) / 2:
        return "not-latin"
    words = _WORDS.findall(text.lower())
    if _loops(re.findall(r"\w+", text.lower())):
        return "looping"
    return "not-english" if _is_foreign(words, letters.isascii()) else None


def _is_foreign(words: Sequence[str], is_ascii: bool) -> bool:
    """Return whether the frequent words are those of other languages, or English ones are missing altogether."""
    english, foreign = (sum(map(words_of.__contains__, words)) for words_of in (patterns.ENGLISH, patterns.FOREIGN))
    if foreign >= 2 and foreign > english:
        return True
    n_other = sum(not word.isascii() for word in words)
    is_short_foreign = len(words) >= _FEW_WORDS and n_other >= len(words) * _FOREIGN_SHARE
    if is_short_foreign and patterns.ENGLISH.isdisjoint(set(words) - patterns.SHARED):
        return True
    return not english and (len(words) >= 40 or (len(words) >= 20 and (foreign > 0 or not is_ascii)))


def _loops(words: Sequence[str]) -> bool:
    """Return whether a few words, over and over, make up a longer text: most runs of three words come again."""
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return len(words) >= _LOOP_WORDS and len(set(runs)) <= len(runs) * _LOOP_SHARE
