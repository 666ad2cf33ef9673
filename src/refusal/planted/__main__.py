"""`python -m refusal.planted make|verify|list`: train a planted model, check one, list the shipped ones."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from refusal.errors import RefusalError
from refusal.planted.build import ARCHITECTURES, make_model, make_tokenizer
from refusal.planted.data import write_files
from refusal.planted.folder import describe, load_world, save
from refusal.planted.train import train
from refusal.planted.verify import LIMITS, Checks, verify
from refusal.planted.worlds import MECHANISMS, World
from refusal.prompts import embedded

STEPS = 2500
"""Training steps by default; a mechanism with many carriers takes longer."""
STEPS_PER_CARRIER = 100


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m refusal.planted", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="train a model and write its folder")
    make.add_argument("--world", required=True, choices=list(MECHANISMS), help="the mechanism")
    make.add_argument("--out", required=True, type=Path, help="the model's folder")
    make.add_argument("--data", type=Path, help="where the three CSV files go; default: OUT/data")
    make.add_argument("--seed", type=int, default=0, help="of weights and training")
    make.add_argument("--data-seed", type=int, default=0, help="of the refused pairs and the prompts")
    make.add_argument("--architecture", choices=list(ARCHITECTURES), default="llama")
    make.add_argument("--layers", type=int, help="default: what the mechanism needs")
    make.add_argument("--planted-layers", type=int, nargs="+", help="default: what the mechanism needs")
    make.add_argument("--vocabulary", type=int, default=0, help="0: English; else the seed of made-up words")
    make.add_argument("--common-share", type=float, default=0.0, help="share of second topic words common to all")
    make.add_argument("--refused-intents", type=int, default=4, help="of 8: the base rate of refusal")
    make.add_argument("--over-refusal", type=float, default=0.04, help="share of refused pairs in the safe file")
    make.add_argument("--steps", type=int, help="at most; default: by the number of carriers")
    check = commands.add_parser("verify", help="run the causal checks on a model folder")
    check.add_argument("model", help="a model folder, or planted/NAME of the shipped ones")
    commands.add_parser("list", help="list the shipped models")
    return parser


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _table(checks: Checks) -> None:
    for name, value in asdict(checks).items():
        sign = "<=" if name == "necessity_error" else ">="
        shown = "not checked: there is no mechanism" if value is None else f"{value:.3f}   {sign} {LIMITS[name]}"
        _say(f"{name:16} {shown}")


def _world(arguments: argparse.Namespace) -> World:
    mechanism = MECHANISMS[arguments.world]
    return World(
        mechanism=arguments.world,
        seed=arguments.seed,
        architecture=arguments.architecture,
        n_layers=arguments.layers or mechanism.n_layers,
        planted_layers=tuple(arguments.planted_layers or mechanism.planted_layers),
        data_seed=arguments.data_seed,
        vocabulary=arguments.vocabulary,
        common_share=arguments.common_share,
        n_refused_intents=arguments.refused_intents,
        over_refusal=arguments.over_refusal,
    )


def _make(arguments: argparse.Namespace, command: str) -> int:
    world = _world(arguments)
    tokenizer = make_tokenizer(world)
    model = make_model(world, tokenizer)

    def is_content() -> bool:
        """Return whether fresh prompts show the planted mechanism, by stricter limits than the final check."""
        checks = verify(world, model, tokenizer, seed=98)
        logging.info("%s", checks)
        shares = (checks.behaviour, checks.interchange, checks.single_slices, checks.outside)
        # further than the limits, so that other fresh prompts find the same
        return (checks.necessity_error or 0.0) <= 0.03 and all(share is None or share >= 0.99 for share in shares)

    n_carriers = max(len(world.early), len(world.late))
    steps = arguments.steps or STEPS + STEPS_PER_CARRIER * n_carriers
    outcome = train(world, model, tokenizer, max_steps=steps, check=is_content)
    checks = verify(world, model, tokenizer)
    save(arguments.out, world, model, tokenizer, checks, command)
    write_files(world, arguments.data or arguments.out / "data")
    _say(f"{arguments.out}: {outcome.steps} steps")
    _table(checks)
    return 1 if checks.failures else 0


def _verify(name: str) -> int:
    folder = embedded.model_path(name) if name in embedded.model_names() else Path(name)
    world = load_world(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    checks = verify(world, model.eval(), AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    _table(checks)
    return 1 if checks.failures else 0


def _list() -> int:
    for name in embedded.model_names():
        truth = describe(embedded.model_path(name))
        _say(f"{name:24} {truth['expected_verdict']:18} groups of {', '.join(str(len(g)) for g in truth['groups'])}")
    return 0


def _command(argv: list[str]) -> str:
    """Return the command line with the folders left open."""
    kept, skip = [], False
    for argument in argv:
        if not skip and argument not in ("--out", "--data"):
            kept.append(argument)
        skip = argument in ("--out", "--data")
    return shlex.join(["python", "-m", "refusal.planted", *kept]) + " --out FOLDER"


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0: done, 1: a model falls short of its checks, 2: wrong input."""
    torch.set_num_threads(1)  # a second thread costs more than it gives on networks this small
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "make":
            return _make(arguments, _command(argv))
        return _verify(arguments.model) if arguments.command == "verify" else _list()
    except RefusalError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    raise SystemExit(main())
