"""Memory: none leaks over a thousand calls, and a training step takes no more than torch.nn's."""

from __future__ import annotations

import pytest
import torch
from cases import Case, Implementation, Problem, draw, evaluate, ours, torch_nn
from subprocesses import output_of

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


def peak_of_training_step(implementation: Implementation, problem: Problem) -> int:
    """The most bytes of tensors alive at once, beyond those alive before."""
    evaluate(implementation, problem)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        evaluate(implementation, problem)
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


SHAPES = {
    "dense": {"input_size": 128, "hidden_size": 128, "steps": 50, "batch": 32},
    "deep": {"input_size": 64, "hidden_size": 256, "steps": 20, "batch": 16, "bidirectional": True, "num_layers": 2},
    "packed": {"input_size": 32, "hidden_size": 64, "lengths": tuple(range(40, 8, -1))},
}
# Where the weights outweigh the sequences, what backward holds for both directions at once is more than what torch.nn keeps per
# step, by torch's count: 26.2 MB against 20.3. In that are 2 MiB by which the workspace is aligned, and which nobody touches; the
# resident memory of such a step is 16.6 MB against 20.0 (benchmarks/memory.py).
ABOVE = {("gru", "deep"): pytest.mark.xfail(strict=True, reason="backward works on both directions of a GRU layer at once")}


@pytest.mark.parametrize(
    ("cell", "shape"),
    [pytest.param(c, s, marks=ABOVE.get((c, s), ()), id=f"{c}-{s}") for c in ("lstm", "gru") for s in SHAPES],
)
@pytest.mark.backends("cpu")
def test_the_peak_of_a_training_step_is_not_above_torch_nns(backend: str, cell: str, shape: str) -> None:
    problem = draw(Case(cell, **SHAPES[shape]))
    assert peak_of_training_step(ours, problem) <= peak_of_training_step(torch_nn, problem)
