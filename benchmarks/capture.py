"""Speed and memory of getting the residual stream at the readout position: ours, transformers' own, peers, the floor.

    python -m benchmarks.capture [--layers 4 --width 768 --prompts 64 --tokens 24] [--threads 1] [--repeats 5]
    python -m benchmarks.capture --budgets          tokens of a batch: prompts per second by `batch_memory.CPU_TOKENS`
    python -m benchmarks.capture --answers 32       ours with answers: ended ones in the batch to the end, or taken out

All run the same batches of the same random GPT-2 and keep the output of every block at the last prompt position, each
in a process of its own, so that memory can be told apart. The floor is the plain forward pass of these batches with the
logits of the last position only; it runs in turn with each contender, in the same process, and a ratio is the median
over the turns. Seconds are CPU seconds with one thread, wall seconds with more or on a GPU; on a shared machine only
ratios mean something. Memory is the peak above what is there before a run, the model among it.

Seen on a quiet machine, one thread, 7 batches of 64 prompts. The floor against itself reads 0.95 to 1.03 over runs:
differences below .05 say nothing. At this size no contender is far from the floor.

                               prompts/s    /floor       MiB
    floor: plain forward            45.6     1.006        26
    plain, with cache               44.1     1.044        15
    ours                            43.3     1.041        34
    ours, all positions             42.2     1.068        37
    output_hidden_states            45.0     1.045        25
    TransformerLens                 41.2     1.078        28
    nnsight                         43.1     1.028        36

Ours alone, 21 turns of 24 prompts: 1.035, of which .02 is the sorting of the first token's 1,024 largest logits, which
are kept besides. `--answers 24`: 12.1 prompts per second when ended answers stay (35 of 64 end at once), 15.8 when they
leave. `--budgets`, 256 prompts, 2 layers, with 8 tokens of answer: 19.5 prompts per second with batches of 256 tokens,
36.7 with 2,048, 42.9 with 4,096, 38.8 with 8,192.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from benchmarks.capture_peers import CONTENDERS, Batch, Run, absent, floor, installed, ours
from refusal import capture as capture_module
from refusal.batch_memory import CPU_PASS, CPU_TOKENS
from refusal.batches import Batcher, Budget
from refusal.models import ChatModel

VOCABULARY = 50_257


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that stands in for one: prompts are token ids already."""
    words = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", padding_side="left")


def make_model(args: argparse.Namespace) -> ChatModel:
    """Return a random GPT-2 whose answers never end."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=args.layers,
        n_embd=args.width,
        n_head=max(1, args.width // 64),
        vocab_size=VOCABULARY,
        eos_token_id=None,
        bos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(args.device)
    return ChatModel("random GPT-2", model, make_tokenizer())


def make_batches(model: ChatModel, args: argparse.Namespace, tokens: int | None = None) -> list[Batch]:
    """Return prompts of random tokens and of lengths around the mean, in the batches of a run."""
    draw = torch.Generator().manual_seed(0)
    lengths = (args.tokens * (1 + 0.4 * torch.randn(args.prompts, generator=draw))).round().int().clamp_min(4)
    ordered = sorted(lengths.tolist())
    token_ids = [torch.randint(1, VOCABULARY, (length,), generator=draw).tolist() for length in ordered]

    def batch(rows: range) -> Batch:
        """Return a batch, padded."""
        ids = token_ids[rows.start : rows.stop]
        return Batch(ids, model.pad(ids))

    budget = Budget(args.prompts, tokens or args.batch_tokens, padding=CPU_PASS * args.answers)
    return Batcher(budget).run(ordered, batch)


# In the process of one contender -------------------------------------------------------------------------------------


def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Return a contender's least seconds, its times of the floor's (the median over the turns), and its peak MiB."""
    model, plain = make_model(args), make_model(args)
    contender, at_best = CONTENDERS[name](model), floor(plain)
    batches = make_batches(plain, args)
    _check(contender, ours(plain), batches[0])
    at_best(batches[0])
    seconds, ratios, mib = [], [], []
    for turn in range(args.repeats):
        # the one that goes first changes, for what the turn before leaves in the caches
        order = [at_best, contender] if turn % 2 else [contender, at_best]
        took = {}
        for run in order:
            before = _reset_peak(args)
            took[run] = _seconds(run, batches, args)
            if run is contender:
                mib.append(_peak(args) - before)
        seconds.append(took[contender])
        ratios.append(took[contender] / took[at_best])
    return {"seconds": min(seconds), "ratio": statistics.median(ratios), "mib": statistics.median(mib)}


@torch.no_grad()
def _check(contender: Run, wanted: Run, batch: Batch) -> None:
    """Raise if a contender that keeps something keeps something else."""
    for one, other in zip(contender(batch), wanted(batch), strict=False):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def _seconds(run: Run, batches: Sequence[Batch], args: argparse.Namespace) -> float:
    clock = _clock(args)
    started = clock()
    kept = [run(batch) for batch in batches]
    seconds = clock() - started
    assert len(kept) == len(batches)
    return seconds


def _clock(args: argparse.Namespace) -> Callable[[], float]:
    if args.device == "cuda":
        return lambda: (torch.cuda.synchronize(), time.perf_counter())[1]
    return time.process_time if args.threads == 1 else time.perf_counter


def _reset_peak(args: argparse.Namespace) -> float:
    """Let the peak be counted anew (Linux, CUDA) and return what is in use, in MiB."""
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return _memory_mib("VmRSS")


def _peak(args: argparse.Namespace) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if args.device == "cuda" else _memory_mib("VmHWM")


def _memory_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


# In the main process -------------------------------------------------------------------------------------------------


def table(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Run all contenders and print a row for each."""
    batches = make_batches(make_model(args), args)
    computed = sum(batch.padded.input_ids.numel() for batch in batches)
    needed = sum(len(ids) for batch in batches for ids in batch.token_ids)
    print(
        f"{args.prompts} prompts of about {args.tokens} tokens in {len(batches)} batches, {computed / needed:.2f} "
        f"tokens computed for each needed; {args.layers} layers, d_model {args.width}, {args.device}, threads: "
        f"{args.threads}"
    )
    print(f"{'':24s}{'prompts/s':>12s}{'/floor':>10s}{'MiB':>10s}")
    for name in installed():
        if args.only and name not in args.only:
            continue
        command = [sys.executable, "-m", "benchmarks.capture", *argv, "--contender", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{name:24s}{args.prompts / found['seconds']:12,.1f}{found['ratio']:10.3f}{found['mib']:10.0f}", flush=True
        )
    for name in absent():
        print(f"{name:24s}  not installed")


def budgets(args: argparse.Namespace) -> None:
    """Print prompts per second by the tokens of a batch, for the prompt alone and with a few tokens of answer."""
    model = make_model(args)
    print(f"{'tokens of a batch':24s}{'prompts/s':>12s}{'with 8 tokens of answer':>26s}")
    for tokens in (256, 512, 1024, 2048, CPU_TOKENS, 8192):
        cells = []
        for n_new in (1, 8):
            args.answers = n_new
            batches = make_batches(model, args, tokens)
            run = ours(model, max_new_tokens=n_new)
            cells.append(args.prompts / min(_seconds(run, batches, args) for _ in range(args.repeats)))
        print(f"{tokens:<24,d}{cells[0]:12,.1f}{cells[1]:26,.1f}", flush=True)


def answers(args: argparse.Namespace) -> None:
    """Print prompts per second with answers, half of which end at once, in the batch to the end or taken out of it."""
    model = make_model(args)
    batches = make_batches(model, args)
    firsts = [token for batch in batches for token in capture_module.capture(model, batch.token_ids, [], 1).answers]
    chosen = {tokens[0] for tokens in firsts[::2]}
    model.__dict__["eos_token_ids"] = frozenset(chosen)
    n_ended = sum(tokens[0] in chosen for tokens in firsts)
    print(f"{n_ended} of {args.prompts} answers end at once, the others after up to {args.answers} tokens")
    seconds = {}
    for _ in range(args.repeats):
        for name, share in (("stay to the end", 0.0), ("leave", capture_module.LEAVE_AT)):
            with mock.patch.object(capture_module, "LEAVE_AT", share):
                took = _seconds(ours(model, max_new_tokens=args.answers), batches, args)
            seconds[name] = min(took, seconds.get(name, took))
    for name, least in seconds.items():
        print(f"{name:24s}{args.prompts / least:12,.1f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = (
        ("layers", 4),
        ("width", 768),
        ("prompts", 64),
        ("tokens", 24),
        ("threads", 1),
        ("repeats", 5),
        ("answers", 1),
    )
    for name, value in sizes:
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--batch-tokens", type=int, default=CPU_TOKENS, help="padded tokens of a batch")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--budgets", action="store_true", help="compare tokens of a batch instead")
    parser.add_argument("--only", nargs="*", default=(), help="contenders to run")
    parser.add_argument("--contender", choices=sorted(CONTENDERS), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    if args.contender is not None:
        print(json.dumps(measure(args.contender, args)))
    elif args.answers > 1:
        answers(args)
    elif args.budgets:
        budgets(args)
    else:
        table(args, argv)


if __name__ == "__main__":
    main()
