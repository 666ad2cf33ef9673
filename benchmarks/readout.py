"""Speed of runs at the readout position: both layouts of the variants against the one-token floor.

    python benchmarks/readout.py [--seconds 1] [--tiny]

A row is one variant of one prompt. The floor is a plain forward pass of as many single tokens without any prefix, so
nothing that runs the model once per row can be faster. Times are CPU times of one thread, the best of many runs; on a
shared machine only ratios mean something.

Seen with a Llama of 4 layers and d_model 64, 64 prompts, one thread (rows per second; in brackets, times the floor):

    tokens  variants    floor  side by side        as rows        gradients: side by side  as rows
        20         1   40,076    25,436 (1.6)     22,367 (1.8)     12,335 (3.2)     11,483 (3.5)
        20         4   84,324    53,207 (1.6)     24,555 (3.4)     27,864 (3.0)     18,575 (4.5)
        20        16  100,221    86,079 (1.2)     25,405 (3.9)     39,663 (2.5)     18,969 (5.3)
        40         1   42,006    22,028 (1.9)     20,002 (2.1)     10,225 (4.1)      9,667 (4.3)
        40         4   84,978    44,390 (1.9)     13,727 (6.2)     24,613 (3.5)     11,731 (7.2)
        40        16  102,888    78,516 (1.3)     16,650 (6.2)     35,984 (2.9)     11,974 (8.6)
        80         1   41,295    14,861 (2.8)     13,315 (3.1)      7,484 (5.5)      6,980 (5.9)
        80         4   81,864    39,946 (2.0)      8,110 (10.1)     18,867 (4.3)      7,329 (11.2)
        80        16   99,648    57,521 (1.7)      9,910 (10.1)     30,226 (3.3)      7,254 (13.7)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from refusal.models import ChatModel
from refusal.readout import Edit, ReadoutBatch, ReadoutRunner, _Rows, _SideBySide
from refusal.sites import Site

N_PROMPTS, VOCAB, EDITED = 64, 500, Site.parse("residuals_0")


class _NoTokenizer:
    """Stands in for a tokenizer: prompts are token ids already."""

    pad_token_id = 0
    eos_token_id = 0


def make_model() -> ChatModel:
    """Return a random Llama of 4 layers with d_model 64."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128
    )
    return ChatModel("bench", AutoModelForCausalLM.from_config(config, dtype=torch.float32), _NoTokenizer())


def best_seconds(run: Callable[[], object], budget: float) -> float:
    """Return the shortest CPU time of a call, in seconds, over as many calls as fit the budget."""
    run()
    best, started = float("inf"), time.process_time()
    while time.process_time() - started < budget:
        before = time.process_time()
        run()
        best = min(best, time.process_time() - before)
    return best


def floor(model: ChatModel, n_rows: int) -> Callable[[], object]:
    """Return the plain forward pass of `n_rows` single tokens."""
    tokens = torch.ones(n_rows, 1, dtype=torch.long)

    def run() -> object:
        """Run the plain forward pass."""
        with torch.no_grad():
            return model.model(input_ids=tokens, use_cache=False)

    return run


def forward(batch: ReadoutBatch, n_variants: int) -> Callable[[], object]:
    """Return a run with an edit and every site recorded."""
    shift = torch.linspace(0, 1, n_variants)[:, None, None]

    def run() -> object:
        """Run the variants forward."""
        with torch.no_grad():
            return batch.run(n_variants, [Edit(EDITED, lambda acts: acts + shift)], batch.model.sites())

    return run


def backward(batch: ReadoutBatch, n_variants: int) -> Callable[[], object]:
    """Return a run with the gradient of a logit with respect to the edited site."""

    def run() -> object:
        """Run the variants forward and back."""
        leaf = torch.zeros(n_variants, len(batch.prompts), 64, requires_grad=True)
        logits = batch.run(n_variants, [Edit(EDITED, lambda acts: acts + leaf)]).logits
        return torch.autograd.grad(logits[..., 7].sum(), leaf)

    return run


def main() -> None:
    """Print a table: prompt length, variants, floor, both layouts forward, both with gradients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU time per number")
    parser.add_argument("--tiny", action="store_true", help="one short length: a smoke test")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model()
    draw = torch.Generator().manual_seed(0)
    print("tokens  variants    floor  side by side        as rows        gradients: side by side  as rows")
    for length in (20,) if arguments.tiny else (20, 40, 80):
        token_ids = [torch.randint(1, VOCAB, (length - row % 8,), generator=draw).tolist() for row in range(N_PROMPTS)]
        (batch,) = ReadoutRunner(model, token_ids, batch_size=N_PROMPTS).batches(range(N_PROMPTS))
        assert isinstance(batch._layout, _SideBySide)
        layouts = (batch._layout, _Rows(batch._layout._tokens, batch._layout._prefix))
        for n_variants in (1, 4, 16):
            n_rows = n_variants * N_PROMPTS
            at_best = best_seconds(floor(model, n_rows), arguments.seconds)
            cells = []
            for kind in (forward, backward):
                for layout in layouts:
                    batch._layout = layout
                    seconds = best_seconds(kind(batch, n_variants), arguments.seconds)
                    cells.append(f"{n_rows / seconds:>8,.0f} ({seconds / at_best:.1f})")
            print(f"{length:>6}  {n_variants:>8} {n_rows / at_best:>8,.0f}  " + "   ".join(cells), flush=True)


if __name__ == "__main__":
    main()
