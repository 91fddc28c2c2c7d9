"""The same call gives the same bits: however often, and whatever new memory holds.

Bits may differ between thread counts, which share the work out differently; test_numerics.py holds each to the same budget.
"""

from __future__ import annotations

import pytest
import torch
from cases import Case, draw, evaluate, ours
from marks import every_backend
from subprocesses import output_of

CASES = [
    Case(cell, **options)
    for cell in ("lstm", "gru")
    for options in (
        {"input_size": 33, "hidden_size": 65, "steps": 9, "batch": 17, "bidirectional": True, "num_layers": 2},
        {"input_size": 7, "hidden_size": 17, "lengths": (9, 9, 5, 4, 1), "bidirectional": True},
        {"input_size": 100, "hidden_size": 129, "steps": 5, "batch": 3, "dtype": torch.bfloat16},
        {"hidden_size": 15, "dtype": torch.float64},
    )
]


@pytest.mark.parametrize("n_threads", [1, 2, 4])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_call_twice_gives_the_same_bits(backend: str, case: Case, n_threads: int, threads) -> None:
    threads(n_threads)
    problem = draw(case)
    first = evaluate(ours, problem)
    for _ in range(3):
        for name, value in evaluate(ours, problem).items():
            assert torch.equal(value, first[name]), name


@every_backend
@pytest.mark.parametrize("case", [*CASES, Case("lstm", batch=0), Case("gru", steps=1, batch=1)], ids=str)
def test_what_uninitialised_tensors_hold_does_not_matter(backend: str, case: Case, poisoned_memory: None) -> None:
    problem = draw(case)
    poisoned = evaluate(ours, problem)
    torch.use_deterministic_algorithms(False)
    for name, value in evaluate(ours, problem).items():
        assert torch.equal(poisoned[name], value), name


_CHECKSUMS = """
import torch
from cases import draw, evaluate, ours
from test_repeatability import CASES
from rnnkernels import use_backend
torch.set_num_threads(2)
with use_backend("cpu"):
    for case in CASES:
        for name, value in sorted(evaluate(ours, draw(case)).items()):
            print(case, name, value.double().sum().item(), value.double().abs().sum().item())
"""


def test_what_the_allocator_hands_out_does_not_matter(native_library: None) -> None:
    """glibc fills memory with a byte as it is allocated and with its complement as it is freed: native workspaces included.

    0x00 fills with 0xFF on allocation, which is NaN in every floating-point dtype; 0x80 with 0x7F, huge or NaN.
    """

    plain = output_of(_CHECKSUMS)
    assert "nan" not in plain
    for byte in (255, 128):
        assert output_of(_CHECKSUMS, MALLOC_PERTURB_=str(byte)) == plain
