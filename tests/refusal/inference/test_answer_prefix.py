"""A beginning common to all answers is moved into the prompt; a beginning that tells them apart is not."""

from __future__ import annotations

import pytest
import torch
from tiny_models import WORDS, make_model

from refusal.inference import answer_prefix
from refusal.prompts import DatasetLabel, Prompt, PromptSource

ANSWERS = {True: "i cannot help with that", False: "sure here is one"}


def prompts_of(n=8):
    labels = [DatasetLabel.SAFE, DatasetLabel.TOXIC]
    return [
        Prompt(f"p{row:02d}", "secret" if row % 2 else "garden", "privacy", labels[row % 2], PromptSource.SAFE_80K)
        for row in range(n)
    ]


@pytest.fixture
def scripted(monkeypatch):
    """Return a function that makes the model answer with an opening and then by the prompt."""

    def script(opening):
        model = make_model("llama")

        def answer(model, token_ids, max_new_tokens, rows):
            found = []
            for ids in token_ids[rows.start : rows.stop]:
                words = [WORDS[token] for token in ids]
                full = [*opening, *ANSWERS["secret" in words].split()]
                done = words[words.index("<assistant>") + 1 :]
                found.append([WORDS.index(word) for word in full[len(done) :]])
            return found

        monkeypatch.setattr(answer_prefix, "_answer", answer)
        return model

    return script


@pytest.mark.parametrize("opening", [(), ("the",), ("the", "plan")])
def test_prefix_is_what_all_answers_begin_with(scripted, opening):
    model = scripted(opening)
    prompts = prompts_of()
    token_ids = model.tokenize([prompt.text for prompt in prompts])
    found = answer_prefix.shared_answer_prefix(model, prompts, token_ids, max_new_tokens=8)
    assert [WORDS[token] for token in found] == list(opening)
    assert bool(model.notices) == bool(opening)


def test_prefix_when_only_one_behaviour_is_seen_is_empty(scripted):
    model = scripted(("the",))
    prompts = [prompt for prompt in prompts_of() if prompt.text == "secret"]
    token_ids = model.tokenize([prompt.text for prompt in prompts])
    assert answer_prefix.shared_answer_prefix(model, prompts, token_ids, max_new_tokens=8) == ()


def test_probe_does_not_depend_on_the_order_of_prompts():
    prompts = prompts_of(100)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [prompts[row] for row in order]
    one = {prompts[row].id for row in answer_prefix._probe(prompts)}
    two = {shuffled[row].id for row in answer_prefix._probe(shuffled)}
    assert one == two
    assert len(one) == 2 * answer_prefix.PROBE_PROMPTS
