"""The checker of annotations during tests: `pytest --jaxtyping-packages=refusal,circuits,typechecker.check`.

beartype, with four allowances. An integer is a float, as for mypy. `Self` is not looked at: the hook decorates
functions one by one, and a function alone does not know its class. A function of a protocol that exists for mypy alone
goes unchecked. A function that is defined anew at each call of another is checked the first times only: making the
check takes longer than most of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Self

from beartype import BeartypeConf, FrozenDict, beartype
from beartype.roar import BeartypeDecorHintPep3119Exception

_check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({Self: Any})))

_definitions: Counter[tuple[str, str]] = Counter()
CHECKED_DEFINITIONS = 40
"""Times that a function of one name is checked; one that is defined once is checked at each of its calls."""


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its annotations checked at each call."""
    name = (function.__module__, function.__qualname__)
    _definitions[name] += 1
    if _definitions[name] > CHECKED_DEFINITIONS:
        return function
    try:
        return _check(function)
    except BeartypeDecorHintPep3119Exception:
        return function
