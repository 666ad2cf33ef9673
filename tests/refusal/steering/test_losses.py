"""Cross-entropy and perplexity of texts, with and without interventions, and the means that ablations leave."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import PROMPTS

from refusal.steering import Addition, Frame, Region
from refusal.steering.losses import Text, losses, perplexity
from refusal.steering.references import mean_reference
from refusal.steering.run import Runs

ANSWERS = ((11, 12), (13, 14, 15, 16), (11,), (17, 18, 11), (12, 12))


def texts(model):
    return [Text(tuple(ids), answer) for ids, answer in zip(model.tokenize(PROMPTS), ANSWERS, strict=True)]


def by_hand(model, text):
    ids = torch.tensor([[*text.given, *text.scored]])
    with torch.no_grad():
        logits = model.model(input_ids=ids).logits.log_softmax(-1)[0]
    first = len(text.given)
    return -sum(float(logits[first + i - 1, token]) for i, token in enumerate(text.scored))


def test_losses_are_those_of_the_scored_tokens_alone_whatever_the_batch(tiny_model):
    model = tiny_model("llama")
    found = losses(Runs(model), texts(model), ())
    wanted = [by_hand(model, text) for text in texts(model)]
    assert found.nats == pytest.approx(wanted, abs=1e-4)
    assert found.n_tokens.tolist() == [len(answer) for answer in ANSWERS]
    assert losses(Runs(model, batch_size=1), texts(model), ()).nats == pytest.approx(wanted, abs=1e-4)
    mean = found.cross_entropy(0, 200)
    assert mean.value == pytest.approx(sum(wanted) / sum(map(len, ANSWERS)), abs=1e-5)
    assert mean.low < mean.value < mean.high
    assert perplexity(mean).value == pytest.approx(math.exp(mean.value))
    assert perplexity(mean).low == pytest.approx(math.exp(mean.low))


def test_no_texts_have_no_loss(tiny_model):
    found = losses(Runs(tiny_model("llama")), [], ()).cross_entropy(0, 100)
    assert found.value is None
    assert perplexity(found).value is None
    assert found.reason == "no texts"


def test_the_readout_region_is_the_prompts_last_token_and_absent_from_plain_text(tiny_model):
    model = tiny_model("llama")
    push = Addition(torch.full((32,), 3.0), 1, region=Region.READOUT)
    chat = texts(model)
    plain = [Text(text.given, text.scored, is_chat=False) for text in chat]
    assert not (losses(Runs(model), chat, [push]).nats == losses(Runs(model), chat, ()).nats).any()
    assert losses(Runs(model), plain, [push]).nats == pytest.approx(losses(Runs(model), plain, ()).nats, abs=1e-5)
    answer = Addition(torch.full((32,), 3.0), 1, region=Region.ANSWER)
    whole = Addition(torch.full((32,), 3.0), 1)
    assert losses(Runs(model), plain, [answer]).nats == pytest.approx(
        losses(Runs(model), plain, [whole]).nats, abs=1e-4
    )


def test_a_frame_says_the_kind_of_every_column():
    frame = Frame(n_template=2)
    assert frame.kinds(torch.zeros(1, 5, 4)).tolist() == [[0, 0, 0, 1, 2]]
    assert frame.kinds(torch.zeros(3, 1, 4)).tolist() == [[3]]
    both = Frame.of_texts(2, [3, 1], [5, 2])
    assert both.given.tolist() == [[0, 1, 2, 3, 3], [0, 0, 0, 2, 3]]


def run(model, site, ids):
    """Return a site's value and the embeddings at all positions of one text, [pos, d_model]."""
    kept = []
    keep = lambda value: kept.append(value[0].clone())  # noqa: E731
    with torch.no_grad(), model.on_stream_start(keep), model.on_site(site, keep):
        model.model(input_ids=ids)
    return kept[1], kept[0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_reference_is_the_mean_by_kind_of_position(tiny_model, family):
    model = tiny_model(family)
    token_ids = model.tokenize(PROMPTS)
    found = mean_reference(Runs(model, Frame(2), batch_size=2), token_ids, ANSWERS)
    site = model.sites()[-1]
    values = {kind: [] for kind in range(4)}
    start = []
    for ids, answer in zip(token_ids, ANSWERS, strict=True):
        whole = torch.tensor([[*ids, *answer]])
        acts, first = run(model, site, whole)
        for column, row in enumerate(acts):
            kind = min(max(column - len(ids) + 3, 0), 3)
            values[kind].append(row.double())
        start.append(first[len(ids) - 1].double())
    wanted = torch.stack([torch.stack(values[kind]).mean(0) for kind in range(4)])
    assert torch.allclose(found[site], wanted, atol=1e-5)
    assert torch.allclose(found[None][2], torch.stack(start).mean(0), atol=1e-5)


def test_a_kind_that_no_prompt_has_gets_the_mean_of_the_readout(tiny_model):
    model = tiny_model("llama")
    found = mean_reference(Runs(model), model.tokenize(PROMPTS), [()] * len(PROMPTS))
    assert torch.equal(found[None][2], found[None][1])
