"""Interventions do what their formulas say, on every family, and leave the model bit for bit as it was."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, PROMPTS

from refusal.interventions import record
from refusal.sites import Site, SiteKind
from refusal.steering import Ablation, Addition, Clamp, Frame, Gate, Gated, Region, orthonormal, steered
from refusal.steering.directional import random_units
from refusal.steering.run import Runs, measure, readout_logits, respond, same, unchanged

D_MODEL = 32
ONE = Frame()


def unit(seed=0):
    drawn = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / drawn.norm()


def logits(model):
    with torch.no_grad():
        return readout_logits(model, model.tokenize(PROMPTS))


def stream(model, layer, *interventions, frame=ONE):
    """Return the residual stream after a block at all positions, [batch, pos, d_model]."""
    site = Site(SiteKind.RESIDUALS, layer)
    with steered(model, *interventions, frame=frame), record(model, [site], last_only=False) as acts:
        logits(model)
    return acts[site].double()


def every_intervention():
    direction = unit()
    return {
        "ablation": Ablation(direction[None]),
        "partial ablation": Ablation(direction[None], amount=0.5),
        "addition": Addition(4 * direction, 1),
        "addition at the embeddings": Addition(4 * direction, -1),
        "clamp": Clamp(direction, 0, 3.0),
        "gated": Gated(Gate(direction, 0, -1e6), Addition(4 * direction, 1)),
    }


def _fail(_):
    raise KeyError("broke")


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_bit_identical_after_any_intervention_also_after_an_error(tiny_model, family):
    model = tiny_model(family)
    plain = logits(model)
    for name, intervention in every_intervention().items():
        with steered(model, intervention):
            assert not torch.equal(logits(model), plain), f"{name} does nothing"
        assert torch.equal(logits(model), plain), name
        with pytest.raises(KeyError, match="broke"), steered(model, intervention):
            _fail(logits(model))
        assert torch.equal(logits(model), plain), name


def test_an_error_while_hooks_are_being_made_leaves_none(tiny_model):
    model = tiny_model("llama")
    plain = logits(model)
    with pytest.raises(IndexError), steered(model, Addition(unit(), 0), Addition(unit(), 99)):
        pass
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_after_ablation_nothing_of_the_direction_is_left_in_the_stream(tiny_model, family):
    model, direction = tiny_model(family), unit()
    for layer in range(model.n_layers):
        left = stream(model, layer, Ablation(direction[None])) @ direction
        assert left.abs().max() < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_ablating_the_stream_without_its_writers_gives_the_same_readout(tiny_model, family):
    """Equals the published ablation, which leaves the last block's output alone: its writers are ablated."""
    model, direction = tiny_model(family), unit()
    everything = Ablation(direction[None])
    last = Site(SiteKind.RESIDUALS, model.n_layers - 1)
    published = Ablation(direction[None], places=[None, *(site for site in model.sites() if site != last)])
    with steered(model, everything):
        wanted = logits(model)
    with steered(model, published):
        assert torch.allclose(logits(model), wanted, atol=1e-5)


def test_ablation_leaves_the_reference_of_each_kind_of_position(tiny_model):
    model, direction = tiny_model("llama"), unit()
    frame = Frame(n_template=2)
    levels = torch.tensor([5.0, 1.0, 2.0, 9.0], dtype=torch.float64)  # text, two template positions, answer
    reference = {place: levels[:, None] * direction for place in (None, *model.sites())}
    left = stream(model, 1, Ablation(direction[None], reference), frame=frame) @ direction
    assert torch.allclose(left[:, -2:], levels[1:3].expand(len(PROMPTS), 2), atol=1e-4)
    assert torch.allclose(left[:, :-2], levels[0].expand(left[:, :-2].shape), atol=1e-4)


def test_ablation_of_two_directions_takes_their_span(tiny_model):
    model = tiny_model("llama")
    pair = torch.stack([unit(1), unit(1) + 0.1 * unit(2)])
    left = stream(model, 2, Ablation(orthonormal(pair)))
    assert (left @ pair.mT).abs().max() < 1e-5


def test_orthonormal_drops_what_is_parallel_and_says_what_it_cannot_do():
    assert orthonormal(torch.stack([unit(), -2 * unit()])).shape == (1, D_MODEL)
    basis = orthonormal(torch.stack([unit(1), unit(2), unit(3)]))
    assert torch.allclose(basis @ basis.mT, torch.eye(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="all zero"):
        orthonormal(torch.zeros(2, D_MODEL))
    with pytest.raises(ValueError, match="not finite"):
        orthonormal(torch.full((1, D_MODEL), float("nan")))


def test_addition_adds_its_multiple_at_its_layer_and_nowhere_before(tiny_model):
    model, vector = tiny_model("llama"), 3 * unit()
    plain = stream(model, 1)
    assert torch.allclose(stream(model, 1, Addition(vector, 1, -2.0)), plain - 2 * vector, atol=1e-5)
    assert torch.equal(stream(model, 0, Addition(vector, 1)), stream(model, 0))


def test_clamping_sets_the_projection_and_leaves_the_rest(tiny_model):
    model, direction = tiny_model("llama"), unit()
    plain, clamped = stream(model, 1), stream(model, 1, Clamp(direction, 1, -4.0))
    assert torch.allclose(clamped @ direction, torch.full_like(clamped @ direction, -4.0), atol=1e-5)
    beside = torch.eye(D_MODEL, dtype=torch.float64) - torch.outer(direction, direction)
    assert torch.allclose(clamped @ beside, plain @ beside, atol=1e-5)


def test_random_units_have_length_one_and_depend_on_the_seed():
    drawn = random_units(4, 3, 0)
    assert torch.allclose(drawn.norm(dim=-1), torch.ones(4, dtype=torch.float64))
    assert torch.equal(drawn, random_units(4, 3, 0))
    assert not torch.equal(drawn, random_units(4, 3, 1))


@pytest.mark.parametrize("region", Region)
def test_a_region_keeps_to_its_positions(tiny_model, region):
    model, vector = tiny_model("llama"), unit()
    changed = (stream(model, 1, Addition(vector, 1, region=region)) - stream(model, 1)).norm(dim=-1) > 1e-3
    assert changed[:, -1].all()
    assert changed[:, :-1].all() == (region is Region.ALL)


def test_each_row_of_a_batch_may_have_its_own_direction(tiny_model):
    model = tiny_model("llama")
    runs, token_ids = Runs(model), model.tokenize(PROMPTS)
    units = torch.stack([unit(seed) for seed in range(3)])
    first = lambda logits, prompts: logits[:, :4]  # noqa: E731
    together = measure(runs, token_ids, 3, lambda variants, prompts: [Ablation(units[variants][:, None])], first)
    for index in range(3):
        alone = measure(runs, token_ids, 1, same(Ablation(units[index][None])), first)[0]
        assert torch.allclose(together[index], alone, atol=1e-5)
    strengths = torch.tensor([0.0, 2.0], dtype=torch.float64)
    vary = lambda variants, prompts: [Addition(units[0], 1, strengths[variants][:, None, None])]  # noqa: E731
    doses = measure(runs, token_ids, 2, vary, first)
    assert torch.allclose(doses[0], measure(runs, token_ids, 1, unchanged, first)[0], atol=1e-5)
    assert torch.allclose(doses[1], measure(runs, token_ids, 1, same(Addition(2 * units[0], 1)), first)[0], atol=1e-5)


def test_steering_acts_on_every_decode_step_when_asked(tiny_model):
    """A direction that writes one token decides every token of the answer, or only the first."""
    model = tiny_model("llama")
    runs, token_ids = Runs(model), model.tokenize(PROMPTS)
    wanted = 11
    push = 200 * model.model.get_output_embeddings().weight[wanted].detach().double()
    last = model.n_layers - 1
    for region, steps in ((Region.ALL, 4), (Region.ANSWER, 4), (Region.READOUT, 1)):
        answers = respond(runs, token_ids, 1, same(Addition(push, last, region=region)), 4)[0]
        for answer in answers:
            assert [token == wanted for token in answer.token_ids[:steps]] == [True] * steps
    assert any(answer.token_ids[1:] != (wanted,) * 3 for answer in answers), (
        "the readout alone does not push later ones"
    )


def test_answers_do_not_depend_on_the_batch(tiny_model):
    model = tiny_model("llama")
    token_ids = model.tokenize(PROMPTS)
    vary = same(Addition(2 * unit(), 0))
    assert respond(Runs(model, batch_size=1), token_ids, 2, vary, 5) == respond(Runs(model), token_ids, 2, vary, 5)


def test_answers_of_rows_with_their_own_directions_are_those_of_each_alone(tiny_model):
    """Answers end at different steps; the rows that go on must keep their own direction."""
    model = tiny_model("llama")
    runs, token_ids = Runs(model), model.tokenize(PROMPTS)
    ends = 60 * model.model.get_output_embeddings().weight[3].detach().double()
    vectors = torch.stack([0 * ends, 5 * unit(1), ends, 5 * unit(2)])
    layer = model.n_layers - 1
    together = respond(runs, token_ids, 4, lambda variants, prompts: [Addition(vectors[variants][:, None], layer)], 8)
    for index, vector in enumerate(vectors):
        assert together[index] == respond(runs, token_ids, 1, same(Addition(vector, layer)), 8)[0]
    lengths = {len(answer.token_ids) for of_variant in together for answer in of_variant}
    assert min(lengths) == 0, "some end at once"
    assert max(lengths) > 3
