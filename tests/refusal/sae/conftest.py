"""SAELens, once for each file of tests."""

from __future__ import annotations

import warnings

import pytest


@pytest.fixture(scope="module")
def sae_lens():
    """Return SAELens, whose import warns of its own imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens

    return sae_lens
