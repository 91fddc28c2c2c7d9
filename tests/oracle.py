"""The float64 oracle, and how far from it an implementation may be.

The yardstick is torch.nn itself. On each tensor, the error (largest absolute difference from the oracle, as a fraction of the
largest absolute value) may be at most twice that of torch.nn in the same dtype on the same problem, plus a floor. torch.nn's
error on one problem is a random draw, tiny where it is lucky; so it is the worst over a few runs that are the same problem to
anybody but a floating-point unit: see :func:`rewritten`.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from cases import GATES, Case, Implementation, Problem, draw, evaluate, torch_nn
from torch import Tensor

from rnnkernels import backends

#: How many runs of torch.nn make up its own error.
RUNS = 4

#: The floor in units of the dtype's epsilon. Measured over 800 random cases (sizes 1-300, 1-30 steps, 1-33 rows; 9,100 tensors)
#: as the most needed beyond twice torch.nn's own error: 5.6 (float32), 1.8 (float64) and nothing (half types) by one more
#: run of torch.nn rewritten; 6.5, 7.8, 0.6 (bfloat16) and 0.9 (float16) by the reference equations, which sum weight gradients
#: over all steps at once where torch.nn adds step to step. Hence the next powers of two.
FLOOR = {torch.float32: 8, torch.float64: 8, torch.bfloat16: 1, torch.float16: 1}

#: Triton's kernels, interpreted, needed 3.7 (bfloat16) and 0.5 (float16) over 300 random cases (sizes 2-200, 1-10 steps, 1-20
#: rows), and 2.5 (float32) over 200: matrix units take gate gradients in the weights' dtype only, where torch.nn keeps an LSTM's
#: in float32. Layers of a single unit, whose few gradients may cancel altogether, were left out after 250 cases with some of them
#: had needed 7.3 (bfloat16) and 1.5 (float16); those among the tests' cases keep to the floor all the same.
FLOORS = {"triton": FLOOR | {torch.bfloat16: 4}}

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def equations(case: Case, input: Tensor, states: tuple[Tensor, ...], weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The textbook equations, one sequence and one step at a time: a second opinion on what torch.nn computes."""
    lengths = case.lengths or (case.steps,) * case.batch
    sizes = [sum(length > t for length in lengths) for t in range(lengths[0])] if lengths else []
    flat = input.reshape(-1, case.input_size)
    starts = [sum(sizes[:t]) for t in range(len(sizes))]
    sequences = [[flat[starts[t] + b] for t in range(length)] for b, length in enumerate(lengths)]
    finals: list[list[list[Tensor]]] = []
    for layer in range(case.num_layers):
        outputs = []
        for direction in range(case.directions):
            own = [states_of[layer * case.directions + direction] for states_of in states]
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            pairs = [_run(case.cell, s, [o[b] for o in own], weights, suffix, direction) for b, s in enumerate(sequences)]
            outputs.append([sequence for sequence, _ in pairs])
            finals.append([final for _, final in pairs])
        sequences = [[torch.cat(step) for step in zip(*both, strict=True)] for both in zip(*outputs, strict=True)]
    rows = [sequences[b][t] for t, size in enumerate(sizes) for b in range(size)]
    stacked = [torch.stack([torch.stack([row[k] for row in rows_of]) for rows_of in finals]) for k in range(len(states))]
    return torch.stack(rows).view(case.output_shape), *stacked


def _run(
    cell: str, steps: list[Tensor], state: list[Tensor], weights: dict[str, Tensor], suffix: str, reverse: int
) -> tuple[list[Tensor], list[Tensor]]:
    """One sequence in one direction of one layer -> its outputs in time order, its final state."""
    w_ih, w_hh = weights["weight_ih" + suffix], weights["weight_hh" + suffix]
    b_ih, b_hh = weights.get("bias_ih" + suffix, 0), weights.get("bias_hh" + suffix, 0)
    w_hr = weights.get("weight_hr" + suffix)
    outputs = []
    for x in reversed(steps) if reverse else steps:
        from_x, from_h = w_ih @ x + b_ih, w_hh @ state[0] + b_hh
        if cell == "lstm":
            i, f, g, o = (from_x + from_h).chunk(4)
            c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            state = [h if w_hr is None else w_hr @ h, c]
        else:
            (x_r, x_z, x_n), (h_r, h_z, h_n) = from_x.chunk(3), from_h.chunk(3)
            z = (x_z + h_z).sigmoid()
            n = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
            state = [(1 - z) * n + z * state[0]]
        outputs.append(state[0])
    return outputs[::-1] if reverse else outputs, state


def rewritten(run: int) -> Implementation:
    """torch.nn on an equivalent problem: inputs, hidden and projected units renumbered, which orders its sums differently, and
    every number moved by at most one ulp of the dtype it accumulates in (half types have no such neighbours: not moved), which
    shows how far rounding can take a result that cancels. Run 0 is torch.nn as it is.
    """

    def implementation(case: Case, input: Tensor, states: tuple[Tensor, ...], weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
        if run == 0:
            return torch_nn(case, input, states, weights)
        generator = torch.Generator().manual_seed(run)
        x, h, r = (torch.randperm(n, generator=generator) for n in (case.input_size, case.hidden_size, case.state_size))
        r = r if case.proj_size else h
        rows = (torch.arange(GATES[case.cell])[:, None] * case.hidden_size + h).flatten()
        both = torch.cat([r + d * case.state_size for d in range(case.directions)])
        orders = {"weight_hh": (rows, r), "bias_ih": (rows,), "bias_hh": (rows,), "weight_hr": (r, h)}
        moved = {}
        for name, weight in weights.items():
            kind, layer = name.split("_l")
            own = orders.get(kind, (rows, x if layer.startswith("0") else both))
            moved[name] = _nudged(weight[own[0]] if len(own) == 1 else weight[own[0]][:, own[1]], generator)
        own_states = (_nudged(s[..., o], generator) for s, o in zip(states, (r, h), strict=False))
        output, h_n, *c_n = torch_nn(case, _nudged(input[..., x], generator), tuple(own_states), moved)
        return output[..., both.argsort()], h_n[..., r.argsort()], *(c[..., h.argsort()] for c in c_n)

    return implementation


def _nudged(value: Tensor, generator: torch.Generator) -> Tensor:
    if value.dtype not in (torch.float32, torch.float64):
        return value
    ulps = torch.randint(-1, 2, value.shape, generator=generator)
    return value * (1 + ulps.to(value.dtype) * torch.finfo(value.dtype).eps)


class Yardstick(NamedTuple):
    problem: Problem
    exact: dict[str, Tensor]  # the oracle's results
    torchs: dict[str, tuple[torch.dtype, torch.Size, float]]  # torch.nn's dtype, shape and error of each result


def measure(problem: Problem, runs: int = RUNS) -> Yardstick:
    exact = evaluate(torch_nn, problem.to(torch.float64))
    results = [evaluate(rewritten(run), problem) for run in range(runs)]
    torchs = {
        name: (results[0][name].dtype, results[0][name].shape, max(error(result[name], value) for result in results))
        for name, value in exact.items()
    }
    return Yardstick(problem, exact, torchs)


@functools.lru_cache(maxsize=512)
def yardstick(case: Case, seed: int = 0) -> Yardstick:
    return measure(draw(case, seed))


def error(actual: Tensor, exact: Tensor) -> float:
    """Largest absolute difference, as a fraction of the largest absolute value of ``exact``; inf if actual is not finite.

    Differences below the dtype's smallest normal number are none: whether subnormal results exist is the processor's choice
    (``torch.set_flush_denormal``).
    """
    if actual.numel() == 0:
        return 0.0
    difference = (actual.double() - exact.double()).abs().max().item()
    if difference != difference:
        return math.inf
    if difference < torch.finfo(actual.dtype).tiny:
        return 0.0
    scale = exact.abs().max().item()
    return difference / scale if scale else math.inf


def floor(dtype: torch.dtype) -> int:
    """The floor, in units of the dtype's epsilon, for the backend asked for in this thread."""
    return FLOORS.get(backends.selected(), FLOOR)[dtype]


def violations(actual: dict[str, Tensor], yardstick: Yardstick) -> list[str]:
    """What is over budget, one line each."""
    lines = []
    for name, (dtype, shape, theirs) in yardstick.torchs.items():
        value = actual[name]
        if value.shape != shape or value.dtype != dtype:
            lines.append(f"{name}: {value.dtype} {list(value.shape)} instead of {dtype} {list(shape)}")
            continue
        eps = torch.finfo(dtype).eps
        own, allowed = error(value, yardstick.exact[name]) / eps, 2 * theirs / eps + floor(dtype)
        if own > allowed:
            lines.append(f"{name}: error {own:.3g} eps, torch.nn's {theirs / eps:.3g}, allowed {allowed:.3g}")
    return lines


def assert_within_budget(implementation: Implementation, case: Case, seed: int = 0) -> None:
    """Every output and gradient of ``implementation`` is as good as torch.nn's."""
    assert_problem_within_budget(implementation, yardstick(case, seed))


def assert_problem_within_budget(implementation: Implementation, yardstick: Yardstick) -> None:
    lines = violations(evaluate(implementation, yardstick.problem), yardstick)
    assert not lines, "\n".join([f"{yardstick.problem.case}:", *lines])


def assert_same_mathematics(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """Two float64 results agree but for rounding: to a thousand ulps of the scale. A wrong formula shows in the first digits."""
    assert actual.dtype == expected.dtype == torch.float64
    assert actual.shape == expected.shape, f"{what}: {list(actual.shape)} instead of {list(expected.shape)}"
    off = error(actual, expected)
    assert off < 1000 * torch.finfo(torch.float64).eps, f"{what}: {off:.3g} of the scale away"
