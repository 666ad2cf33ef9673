"""The causal model by hand, the shipped models against it, and data that give nothing away."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from refusal import embedded
from refusal.errors import InputError
from refusal.labels import classify
from refusal.planted.__main__ import main
from refusal.planted.build import make_model, make_tokenizer
from refusal.planted.data import ANSWERS, FILES, make_prompt, words, write_files
from refusal.planted.folder import expected_verdict, load_world
from refusal.planted.train import train
from refusal.planted.verify import verify
from refusal.planted.worlds import GROUPINGS, N_INTENTS, World, after_interchange, intent_table, refused_intents

SHIPPED = ("monolithic", "partial", "modular")


@pytest.mark.parametrize("seed", range(20))
def test_neither_category_nor_intent_alone_says_what_is_refused(seed):
    table = intent_table(refused_intents(10, seed))
    assert (table.sum(1) == N_INTENTS / 2).all()
    assert np.abs(table.sum(0) - 5).max() <= 1
    assert len({tuple(row) for row in table}) == 10


def test_interchange_of_a_world_with_two_groups_by_hand():
    base = np.array([[True, False], [True, False], [False, False], [False, True]])
    source = np.array([[False, True], [False, True], [True, True], [True, False]])
    swapped = np.array([[True, False], [True, True], [False, False], [False, True]])
    # the first loses its only reason, the second gets the other one, the third keeps none, the fourth loses its own
    assert after_interchange(base, source, swapped).tolist() == [False, True, False, False]


def test_variables_of_a_prompt_name_its_group_only():
    world = World("8+2")
    category = world.groups[1][0]
    refused, complied = (
        next(intent for intent in range(N_INTENTS) if world.is_refused(category, intent) == wanted)
        for wanted in (True, False)
    )
    assert world.variables(category, refused).tolist() == [False, True]
    assert world.variables(category, complied).tolist() == [False, False]


def test_expected_verdicts_follow_the_share_of_pairs():
    assert {name: expected_verdict(World(name)) for name in GROUPINGS} == {
        "monolithic": "MONOLITHIC",
        "modular": "MODULAR",
        "8+2": "PARTIALLY MODULAR",
        "7+3": "PARTIALLY MODULAR",
        "4+3+3": "MODULAR",
        "pairs": "MODULAR",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"grouping": "9+1"}, "allowed are monolithic"), ({"grouping": "pairs", "planted_layers": (3,)}, "layers 1 to 2")],
)
def test_a_world_that_cannot_be_says_what_can(arguments, message):
    with pytest.raises(InputError, match=message):
        World(**arguments)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_passes_its_causal_checks_on_fresh_prompts(name):
    folder = embedded.model_path(f"planted/{name}")
    world = load_world(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    checks = verify(world, model, AutoTokenizer.from_pretrained(folder), n_prompts=400, seed=5)
    assert checks.behaviour >= 0.98
    assert checks.interchange >= 0.97
    assert checks.outside >= 0.95
    assert json.loads((folder / "planted.json").read_text())["expected_verdict"] == expected_verdict(world)


def test_answers_are_recognised_by_the_detector():
    for refused, texts in ANSWERS.items():
        assert classify(list(texts)) == ["refused" if refused else "complied"] * 2


def test_the_tokenizer_knows_every_word_and_gives_it_back(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(" ".join(words()), add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    generator = np.random.default_rng(0)
    for _ in range(20):
        text = make_prompt(generator).text
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_files_are_the_shipped_ones_and_the_same_every_time(tmp_path):
    write_files(World("monolithic"), tmp_path)
    for name in FILES.values():
        assert (tmp_path / name).read_bytes() == (embedded.data_dir() / name).read_bytes()


def test_no_prompt_stands_in_two_files():
    prompts = []
    for name in FILES.values():
        with (embedded.data_dir() / name).open(newline="", encoding="utf-8") as handle:
            prompts += [row["prompt"] for row in csv.DictReader(handle)]
    assert len(set(prompts)) == len(prompts) == 10 * (130 + 30 + 130)


def test_a_short_training_lowers_the_loss_and_is_decided_by_the_seed(caplog):
    world = World("pairs", seed=3, n_layers=3, planted_layers=(1,), d_model=16, d_mlp=40, n_heads=2)
    tokenizer = make_tokenizer()
    models = [make_model(world, tokenizer) for _ in range(2)]
    before = verify(world, models[0], tokenizer, n_prompts=100)
    for model in models:
        train(world, model, tokenizer, max_steps=25, check=lambda: False)
    after = verify(world, models[0], tokenizer, n_prompts=100)
    assert after.behaviour > before.behaviour
    weights = [model.state_dict()["model.layers.1.mlp.down_proj.weight"] for model in models]
    assert weights[0].equal(weights[1])


def test_list_names_the_shipped_models(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"planted/{name}" in shown for name in SHIPPED)
