"""Memory: none leaks over a thousand calls, and a training step takes no more than torch.nn's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import Case, Implementation, draw, evaluate, ours, torch_nn
from subprocesses import output_of

from benchmarks import memory
from rnnkernels import use_backend

_GROWTH = """
import gc, resource, sys, torch
from cases import Case, draw, evaluate, ours
from rnnkernels import use_backend

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

torch.set_num_threads(1)
problems = [draw(Case(cell, hidden_size=64, steps=8, batch=16, bidirectional=True)) for cell in ("lstm", "gru")]
with use_backend(sys.argv[1]):
    for problem in problems * 100:  # the allocator's and torch's caches fill
        evaluate(ours, problem)
    before = resident()
    for problem in problems * 500:
        evaluate(ours, problem)
    print(resident() - before)
"""


def test_a_thousand_calls_forward_and_backward_leak_nothing(backend: str) -> None:
    """One of these calls allocates over 500 kB; a leak of one tensor in each would show as tens of megabytes."""
    assert int(output_of(_GROWTH, backend, timeout=200)) < 4 * 2**20


def peak_of_training_step(implementation: Implementation, case: Case) -> int:
    torch.set_num_threads(1)
    problem = draw(case)
    with use_backend("cpu"):
        return memory.peak(lambda: evaluate(implementation, problem))


SHAPES = {
    "dense": {"input_size": 128, "hidden_size": 128, "steps": 50, "batch": 32},
    "deep": {"input_size": 64, "hidden_size": 256, "steps": 20, "batch": 16, "bidirectional": True, "num_layers": 2},
    "packed": {"input_size": 32, "hidden_size": 64, "lengths": tuple(range(40, 8, -1))},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.backends("cpu")
def test_the_peak_of_a_training_step_is_not_above_torch_nns(backend: str, cell: str, shape: str) -> None:
    """By resident memory: torch's profiler does not see what libraries allocate, ours and oneDNN alike."""
    if reason := memory.unsupported("cpu"):
        pytest.skip(reason)
    case = Case(cell, **SHAPES[shape])
    peak, theirs = (memory.in_fresh_process(peak_of_training_step, step, case) for step in (ours, torch_nn))
    assert peak <= theirs


_LARGE_LAYER = """
import torch, rnnkernels

def lazily_free():
    with open("/proc/self/smaps_rollup") as file:
        return 1024 * sum(int(line.split()[1]) for line in file if line.startswith("LazyFree:"))

layer, x = rnnkernels.LSTM(512, 512), torch.randn(8, 72, 512)  # 8 MiB of packed weights: more rows than inputs
for _ in range(2):
    with torch.no_grad():
        layer(x)
    print(lazily_free())
    layer(x)[0].sum().backward()
    print(lazily_free())
"""


def test_the_workspace_that_is_kept_between_calls_is_the_systems_to_take() -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("the system does not tell what it may take back")
    kept = [int(size) for size in output_of(_LARGE_LAYER).split()]
    assert all(8 * 2**20 <= size <= 16 * 2**20 for size in kept)
    assert len(set(kept)) == 1  # one block, for both passes
    assert set(output_of(_LARGE_LAYER, RNNKERNELS_KEPT_MEMORY_MIB="0").split()) == {"0"}
    assert set(output_of(_LARGE_LAYER, RNNKERNELS_KEPT_MEMORY_MIB="4").split()) == {"0"}


@pytest.mark.parametrize("text", ["lots", "-1", "1.5", "99999999999999999999"])
def test_a_size_to_keep_that_is_no_number_is_refused(text: str) -> None:
    """By the operators and by the short way alike."""
    code = """
import torch, rnnkernels
layer, x = rnnkernels.LSTM(512, 512), torch.randn(4, 8, 512)
for gradients in (False, True):
    with torch.set_grad_enabled(gradients):
        try:
            layer(x)
        except RuntimeError as error:
            print(error)
"""
    errors = output_of(code, RNNKERNELS_KEPT_MEMORY_MIB=text).splitlines()
    assert len(errors) == 2
    assert all(f"RNNKERNELS_KEPT_MEMORY_MIB={text}: not a number of mebibytes" in error for error in errors)
