"""Batches stay within their budget, which follows from memory and is halved where that runs out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make_model

from refusal import batch_memory
from refusal.batch_memory import CPU_PASS, CPU_TOKENS, MAX_PROMPTS, BatchMemory, budget_for
from refusal.batches import Batcher, Budget, TokenCount
from refusal.errors import InputError


def batches_of(lengths, budget):
    return Batcher(budget).run(lengths, lambda rows: rows)


def test_a_batch_is_cut_by_its_own_longest_prompt():
    lengths = [2, 2, 3, 10, 10, 40]
    assert batches_of(lengths, Budget(99, 20)) == [range(3), range(3, 5), range(5, 6)]
    assert batches_of(lengths, Budget(2, 20)) == [range(2), range(2, 4), range(4, 5), range(5, 6)]
    assert batches_of(lengths, Budget(4)) == [range(4), range(4, 6)]
    assert batches_of(lengths, Budget(99, padding=2)) == [range(3), range(3, 5), range(5, 6)]
    # 2 prompts of 2 tokens with answers of 8 are 20 tokens
    assert batches_of(lengths, Budget(99, 20, tokens_per_answer=8))[0] == range(2)


@given(
    st.lists(st.integers(1, 200), max_size=60),
    st.integers(1, 20),
    st.none() | st.integers(1, 300),
    st.integers(0, 20),
    st.none() | st.integers(0, 100),
)
def test_batches_hold_each_prompt_once_in_order_and_within_the_budget(lengths, prompts, tokens, answer, padding):
    budget = Budget(prompts, tokens, answer, padding)
    found = batches_of(lengths, budget)
    assert [row for rows in found for row in rows] == list(range(len(lengths)))
    for rows in found:
        longest = max(lengths[row] for row in rows)
        assert len(rows) <= prompts
        assert tokens is None or len(rows) * (longest + answer) <= tokens or len(rows) == 1
        assert padding is None or len(rows) * longest - sum(lengths[row] for row in rows) <= padding
        if rows.stop < len(lengths):  # not one more would have fitted
            more = lengths[rows.start : rows.stop + 1]
            assert not budget.holds(len(more), max(more), sum(more))


def test_tokens_are_counted_with_and_without_padding():
    batcher = Batcher(Budget(2))
    batcher.run([1, 3, 4, 4, 6], lambda rows: None)
    assert batcher.count == TokenCount(needed=18, computed=6 + 8 + 6)
    assert batcher.count.ratio == 20 / 18
    assert TokenCount().ratio == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_when_memory_runs_out_batches_are_halved_for_good_and_nothing_is_lost(error):
    tried = []

    def run(rows):
        tried.append(len(rows))
        if len(rows) > 2:
            raise error
        return list(rows)

    batcher = Batcher(Budget(8))
    results = batcher.run([5] * 9, run)
    assert [row for part in results for row in part] == list(range(9))
    assert tried == [8, 4, 2, 2, 2, 2, 1]
    assert batcher.budget == Budget(8, tokens=4 * 5 // 2)
    assert batcher.count == TokenCount(45, 45), "what failed does not count"
    tried.clear()
    batcher.run([5, 5, 5, 10], run)
    assert tried == [2, 1, 1], "the next shard begins with what worked"


def test_when_one_prompt_does_not_fit_it_is_said_what_to_do():
    def run(rows):
        raise RuntimeError("out of memory")

    with pytest.raises(InputError, match=r"batch_size: memory ran out with a single prompt, of 7 tokens; use dtype"):
        Batcher(Budget(2)).run([7, 7, 7], run)


def test_other_errors_are_not_hidden():
    def run(rows):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape"):
        Batcher(Budget(2)).run([7, 7, 7], run)


def test_the_budget_is_as_configured_or_that_of_the_device(tiny_model):
    model = tiny_model("llama")
    assert budget_for(model, 3, sites=[], max_new_tokens=8) == Budget(3)
    assert budget_for(model, "auto", sites=[], max_new_tokens=8) == Budget(
        MAX_PROMPTS, CPU_TOKENS, padding=8 * CPU_PASS
    )


def test_memory_of_a_batch_is_the_cache_the_widest_layer_and_what_is_kept():
    model = make_model("llama")  # 3 blocks, d_model 32, 2 key-value heads of 8, MLP of 48, float32
    memory = BatchMemory.of(model, model.sites()[:5], max_new_tokens=10)
    cache = 2 * 3 * 2 * 8 * 4
    assert memory.per_token == cache + (3 * 48 + 4 * 32) * 4
    assert memory.per_answer == 10 * cache + 5 * 32 * 4 + 12 * model.vocab_size


@given(st.integers(0, 10**12))
def test_the_budget_of_free_memory_is_a_power_of_two_that_fits(free):
    memory = BatchMemory(per_token=1000, per_answer=2500)
    budget = memory.budget(free)
    assert budget.tokens_per_answer == 3
    assert budget.tokens.bit_count() == 1
    assert budget.tokens == 1 or budget.tokens * 1000 <= batch_memory.USABLE * free
    assert budget.tokens == batch_memory.MAX_CUDA_TOKENS or 2 * budget.tokens * 1000 > batch_memory.USABLE * free - 1000
