"""Words that decide are found, words that do not are not."""

from __future__ import annotations

import numpy as np

from circuits.predictable import text_auc

CATEGORY = np.repeat([0, 1, 2], 60)


def test_text_auc_when_a_word_decides_is_high_and_no_noise():
    refused = np.tile([True, False], 90)
    texts = [f"{'hide' if side else 'show'} the thing {index % 7}" for index, side in enumerate(refused)]
    found = text_auc(texts, CATEGORY, refused, 0)
    assert found.mean > 0.99
    assert not found.is_noise


def test_text_auc_when_refusals_follow_nothing_is_noise():
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice([f"w{index}" for index in range(30)], 6)) for _ in CATEGORY]
    refused = np.random.default_rng(1).permutation(np.tile([True, False], 90))
    found = text_auc(texts, CATEGORY, refused, 0)
    assert found.low < 0.5 < found.high
    assert found.is_noise


def test_text_auc_with_prompts_of_no_words_or_one_category_is_not_measured():
    refused = np.tile([True, False], 90)
    assert text_auc(["?!"] * 180, CATEGORY, refused, 0) is None
    assert text_auc(["a b"] * 180, np.zeros(180, int), refused, 0) is None
