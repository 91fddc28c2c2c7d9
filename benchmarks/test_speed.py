"""A handful of cases for pytest-benchmark, to track regressions: ``pytest benchmarks --benchmark-only``.

``--benchmark-save=NAME``, ``--benchmark-compare`` and ``--benchmark-compare-fail=median:10%`` are pytest-benchmark's own. Each
entry's ``extra_info`` has the case, what it takes in operations, and what computed it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rnnkernels import info

from . import flops, machine, providers
from .cases import Case, make_problem
from .gate import Gate

CASES = [
    Case(cell, mode, *shape, packed=packed)
    for cell in ("lstm", "gru")
    for mode, shape, packed in (
        ("inference", (100, 1, 64, 64), False),
        ("inference", (50, 64, 512, 512), False),
        ("training", (100, 1, 64, 64), False),
        ("training", (100, 32, 256, 256), False),
        ("training", (100, 32, 256, 256), True),
        ("streaming", (1, 1, 128, 128), False),
    )
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_speed(benchmark: Any, case: Case) -> None:
    provider = providers.make(providers.OURS)
    problem = make_problem(case, seed=0)
    prepared = provider.prepare(problem)
    Gate(problem).check(provider.name, prepared.results())
    rows = sum(problem.lengths)
    benchmark.group = case.group
    benchmark.extra_info.update(
        case=case.as_dict(),
        operations=flops.operations(case, rows),
        threads=torch.get_num_threads(),
        machine=machine.describe()["name"],
        commit=machine.commit(),
        isa=info.collect()["native"]["isa"],
    )
    with prepared.scope():
        benchmark(prepared.call)
