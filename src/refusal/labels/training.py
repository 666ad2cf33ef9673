"""Fit the weights of `learned` to labelled responses: `python benchmarks/labels.py FILE --train` writes them.

1. Every response is taken whole and cut after a few words, since runs often keep only the beginning of an answer.
2. Phrases enter the vocabulary when responses to many prompts, by several models, hold them: topics do not.
3. Two logistic regressions with L2: full refusals against full compliance, then partial against full refusals.

Only this module needs scikit-learn; the weights are read without it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from refusal.labels.behaviour import Behaviour
from refusal.labels.learned import Coefficients, Features, Linear, features
from refusal.labels.reading import read

CUT_WORDS = (22, 45)
"""Words after which copies of a response are cut."""
MIN_PROMPTS = 12
"""Prompts whose responses must hold a phrase."""
MIN_MODELS = 3
"""Models whose responses must hold a phrase (of fewer models, all)."""
C = 0.3
"""Inverse strength of the L2 penalty; smaller forgets details of the models seen."""


@dataclass(frozen=True)
class Labelled:
    """A response that a person has labelled."""

    response: str
    behaviour: Behaviour
    prompt: str
    """Id of the prompt: responses to one prompt are alike and must not be split between fitting and testing."""
    model: str
    """Who answered."""


def cut(response: str, n_words: int) -> str:
    """Return the first words of a response.

    >>> cut("one two three", 2)
    'one two'
    """
    return " ".join(response.strip().split(" ")[:n_words])


def fit(labelled: Sequence[Labelled]) -> Coefficients:
    """Return coefficients fitted to labelled responses; those that cannot be read are left out.

    Raises:
        ValueError: There are not both refused and complied responses.
    """
    whole = [(one, found) for one in labelled if (found := _features(one.response)) is not None]
    vocabulary = _vocabulary(whole)
    rows: list[tuple[Behaviour, Features]] = []
    for one, found in whole:
        copies = (_features(cut(one.response, n_words)) for n_words in CUT_WORDS)
        rows += [(one.behaviour, _known(copy, vocabulary)) for copy in (found, *copies) if copy is not None]
    refused, partial = Behaviour.REFUSED, Behaviour.PARTLY_REFUSED
    return Coefficients(_fit(rows, refused, Behaviour.COMPLIED), _fit(rows, partial, refused))


def _features(response: str) -> Features | None:
    reading = read(response)
    return None if reading.unreadable is not None else features(reading)


def _vocabulary(rows: Iterable[tuple[Labelled, Features]]) -> frozenset[str]:
    """Return the names of the features to keep: phrases that are common to prompts and models, and all others."""
    prompts: dict[str, set[str]] = defaultdict(set)
    models: dict[str, set[str]] = defaultdict(set)
    for one, found in rows:
        for name in found:
            prompts[name].add(one.prompt)
            models[name].add(one.model)
    n_models = len({model for found in models.values() for model in found})
    least = min(MIN_MODELS, n_models)
    return frozenset(
        name
        for name in prompts
        if not name.startswith("says ") or (len(prompts[name]) >= MIN_PROMPTS and len(models[name]) >= least)
    )


def _known(found: Features, vocabulary: frozenset[str]) -> Features:
    return {name: value for name, value in found.items() if name in vocabulary}


def _fit(rows: Sequence[tuple[Behaviour, Features]], positive: Behaviour, negative: Behaviour) -> Linear:
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import LogisticRegression

    used = [(behaviour is positive, found) for behaviour, found in rows if behaviour in (positive, negative)]
    sides = {is_positive for is_positive, _ in used}
    if positive is Behaviour.PARTLY_REFUSED and sides != {True, False}:
        return Linear(-10.0, {})  # nothing tells partial refusals apart: there are none
    if sides != {True, False}:
        raise ValueError(f"labelled responses must hold both {positive} and {negative} ones")
    vectorizer = DictVectorizer()
    matrix = vectorizer.fit_transform([found for _, found in used])
    model = LogisticRegression(C=C, max_iter=3000).fit(matrix, [is_positive for is_positive, _ in used])
    weights = dict(zip(vectorizer.get_feature_names_out().tolist(), model.coef_[0].tolist(), strict=True))
    return Linear(float(model.intercept_[0]), weights)
