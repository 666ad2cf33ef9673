"""`python -m refusal.planted make|verify|list`: train a planted model, check one, list the shipped ones."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from refusal import embedded
from refusal.errors import InputError
from refusal.planted.build import make_model, make_tokenizer
from refusal.planted.data import write_files
from refusal.planted.folder import describe, load_world, save
from refusal.planted.train import train
from refusal.planted.verify import LIMITS, Checks, verify
from refusal.planted.worlds import GROUPINGS, World


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m refusal.planted", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="train a model and write its folder")
    make.add_argument("--world", required=True, choices=list(GROUPINGS))
    make.add_argument("--out", required=True, type=Path)
    make.add_argument("--data", type=Path, help="where the three CSV files go; default: OUT/data")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--data-seed", type=int, default=0)
    make.add_argument("--layers", type=int, default=4)
    make.add_argument("--planted-layers", type=int, nargs="+", default=[1, 2])
    make.add_argument("--steps", type=int, default=6000)
    make.add_argument("--start", type=Path, help="planted model of the same world to go on from")
    check = commands.add_parser("verify", help="run the causal checks on a model folder")
    check.add_argument("folder", type=Path)
    commands.add_parser("list", help="list the shipped models")
    return parser


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _table(checks: Checks) -> None:
    for name, value in asdict(checks).items():
        sign = "<=" if name == "necessity_error" else ">="
        _say(f"{name:16} {value:.3f}   {sign} {LIMITS[name]}")


def _make(arguments: argparse.Namespace) -> int:
    world = World(
        arguments.world,
        arguments.seed,
        arguments.layers,
        tuple(arguments.planted_layers),
        data_seed=arguments.data_seed,
    )
    tokenizer = make_tokenizer()
    model = make_model(world, tokenizer)
    if arguments.start is not None:
        model.load_state_dict(AutoModelForCausalLM.from_pretrained(arguments.start).state_dict())

    def content() -> bool:
        checks = verify(world, model, tokenizer, n_prompts=500, seed=98)
        logging.info("%s", checks)
        return min(checks.behaviour, checks.interchange, checks.single_slices, checks.outside) >= 0.995

    outcome = train(world, model, tokenizer, max_steps=arguments.steps, check=content)
    checks = verify(world, model, tokenizer)
    save(arguments.out, world, model, tokenizer, checks)
    write_files(world, arguments.data or arguments.out / "data")
    _say(f"{arguments.out}: {outcome.steps} steps")
    _table(checks)
    return 1 if checks.failures else 0


def _verify(folder: Path) -> int:
    world = load_world(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    checks = verify(world, model.eval(), AutoTokenizer.from_pretrained(folder))
    _table(checks)
    return 1 if checks.failures else 0


def _list() -> int:
    for name in embedded.model_names():
        truth = describe(embedded.model_path(name))
        _say(f"{name:24} {truth['expected_verdict']:18} groups of {', '.join(str(len(g)) for g in truth['groups'])}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0: done, 1: a model falls short of its checks, 2: wrong input."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "make":
            return _make(arguments)
        return _verify(arguments.folder) if arguments.command == "verify" else _list()
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
