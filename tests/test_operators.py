"""The registered operators keep their contract: fakes, autograd rules, no aliasing, no overwritten saved tensor, no crash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from cases import GATES, Case, draw
from marks import every_backend
from oracle import assert_same_mathematics
from torch import Tensor

from rnnkernels.layout import operator

FAMILY = {"reference": "reference_", "cpu": "", "triton": "triton_"}
OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@dataclass
class Call:
    """An operator's arguments by name, from a case."""

    op: torch._ops.OpOverload
    arguments: dict

    def __call__(self):
        return self.op(*self.arguments.values())

    def changed(self, **arguments) -> Call:
        assert arguments.keys() <= self.arguments.keys()
        return Call(self.op, self.arguments | arguments)


def forward_call(backend: str, case: Case, save: bool = True, requires_grad: bool = False) -> Call:
    problem = draw(case)
    operands = [t.requires_grad_(requires_grad) for t in (problem.input, *problem.states, *problem.weights.values())]
    n = len(problem.states)
    states = dict(zip(("h0", "c0"), operands[1 : n + 1], strict=False))
    arguments = {"input": operands[0], "batch_sizes": case.batch_sizes, **states, "weights": operands[n + 1 :]}
    arguments["has_biases"] = case.bias
    if case.cell == "lstm":
        arguments["has_projection"] = bool(case.proj_size)
    arguments |= {"bidirectional": case.bidirectional, "save_for_backward": save}
    return Call(operator(FAMILY[backend], f"{case.cell}_forward"), arguments)


def backward_call(backend: str, case: Case, requires_grad: bool = False, needs: tuple[bool, bool] = (True, True)) -> Call:
    forward = forward_call(backend, case)
    output, *rest = forward()
    n = 1 if case.cell == "gru" else 2
    grads = dict(zip(("grad_output", "grad_h_n", "grad_c_n"), draw(case).grads, strict=False))
    saved = dict(zip(("gates", "cells"), rest[n:], strict=False))
    given = forward.arguments
    operands = {k: given[k] for k in ("input", "batch_sizes", "h0", "c0", "weights") if k in given}
    flags = {k: given[k] for k in ("has_biases", "has_projection", "bidirectional") if k in given}
    arguments = {**grads, **operands, "output": output, **saved, **flags}
    arguments |= {"needs_input_grad": needs[0], "needs_weight_grads": needs[1]}
    if requires_grad:
        for value in _tensors([*grads.values(), *operands.values()]):
            if value.is_floating_point():
                value.requires_grad_()
    return Call(operator(FAMILY[backend], f"{case.cell}_backward"), arguments)


def _tensors(values: Sequence) -> list[Tensor]:
    flat = [v for value in values for v in (value if isinstance(value, (list, tuple)) else (value,))]
    return [v for v in flat if isinstance(v, Tensor)]


CASES = [
    Case(cell, **options)
    for cell in GATES
    for options in (
        {},
        {"bidirectional": True, "bias": False},
        {"lengths": (4, 2, 1)},
        {"lengths": (3, 3), "bidirectional": True},
        {"dtype": torch.bfloat16},
    )
] + [Case("lstm", proj_size=3, bidirectional=True), Case("lstm", proj_size=3, lengths=(3, 1))]

# Small, for tracing a second derivative takes seconds.
TINY = {"input_size": 2, "hidden_size": 3, "steps": 2, "batch": 2}
OPCHECK_CASES = [Case(cell, **TINY, **options) for cell in GATES for options in ({}, {"lengths": (2, 1), "bidirectional": True})]
OPCHECK_CASES += [Case("lstm", **TINY, proj_size=2, bias=False, dtype=torch.bfloat16)]


@every_backend
@pytest.mark.parametrize(("save", "requires_grad"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("case", OPCHECK_CASES, ids=str)
def test_forward_operators_pass_opcheck(backend: str, case: Case, save: bool, requires_grad: bool) -> None:
    call = forward_call(backend, case, save, requires_grad)
    torch.library.opcheck(call.op, tuple(call.arguments.values()), test_utils=OPCHECKS)


@every_backend
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("case", OPCHECK_CASES, ids=str)
def test_backward_operators_pass_opcheck(backend: str, case: Case, needs: tuple[bool, bool]) -> None:
    call = backward_call(backend, case, needs=needs)
    torch.library.opcheck(call.op, tuple(call.arguments.values()), test_utils=OPCHECKS)


@every_backend
@pytest.mark.parametrize("needs", [(True, True), (False, True)])
@pytest.mark.parametrize("case", OPCHECK_CASES[:4], ids=str)
def test_backward_operators_pass_opcheck_with_second_derivatives(backend: str, case: Case, needs: tuple[bool, bool]) -> None:
    checks = OPCHECKS
    if case.lengths is not None:
        # The second derivative differentiates the reference equations, whose split by batch_sizes depends on data: AOT tracing
        # stops there, as at every shape that depends on data. Tracing a first derivative does not come that way.
        checks = tuple(check for check in OPCHECKS if check != "test_aot_dispatch_dynamic")
    call = backward_call(backend, case, requires_grad=True, needs=needs)
    torch.library.opcheck(call.op, tuple(call.arguments.values()), test_utils=checks)


@every_backend
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_operators_change_no_argument_and_return_new_contiguous_tensors(backend: str, case: Case, direction: str) -> None:
    call = (forward_call if direction == "forward" else backward_call)(backend, case)
    given = _tensors([*call.arguments.values()])
    before = [t.clone() for t in given]
    returned = _tensors([*call()])
    for tensor, copy in zip(given, before, strict=True):
        assert torch.equal(tensor, copy)
    storages = [t.untyped_storage().data_ptr() for t in (*given, *returned) if t.numel()]
    assert len(set(storages)) == len(storages)
    assert all(t.is_contiguous() for t in returned)


@every_backend
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_not_asked_for_is_empty(backend: str, case: Case) -> None:
    *_, grad_weights = backward_call(backend, case, needs=(True, False))()
    assert grad_weights == []
    assert backward_call(backend, case, needs=(False, True))()[0].shape == (0,)
    outputs, bare = forward_call(backend, case)(), forward_call(backend, case, save=False)()
    n = 3 if case.cell == "lstm" else 2
    assert all(t.shape == (0,) for t in bare[n:])
    for with_saving, without in zip(outputs[:n], bare[:n], strict=True):
        assert torch.equal(with_saving, without)


@every_backend
@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_twice_through_a_retained_graph_gives_the_same_bits(backend: str, case: Case) -> None:
    call = forward_call(backend, case, requires_grad=True)
    leaves = [t for t in _tensors([*call.arguments.values()]) if t.requires_grad]
    results = call()[: 3 if case.cell == "lstm" else 2]
    grads = draw(case).grads
    first = torch.autograd.grad(results, leaves, grads, retain_graph=True)
    second = torch.autograd.grad(results, leaves, grads)
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one, two)


# --- bad arguments to native code: an exception, never a crash and never a result ---------------------------------------


def _wrong(case: Case) -> dict[str, dict]:
    """Changes of a forward call's arguments, each of which makes it invalid."""
    problem = draw(case)
    x, h, weights = problem.input, problem.states[0], list(problem.weights.values())
    sizes = case.batch_sizes
    width = x.size(-1)
    wrong: dict[str, dict] = {
        "input of another width": {"input": x.new_zeros(*x.shape[:-1], width + 1)},
        "input with too many dimensions": {"input": x.unsqueeze(0)},
        "input with too few dimensions": {"input": x[0]},
        "input of integers": {"input": x.long()},
        "input of complex numbers": {"input": x.to(torch.complex64)},
        "input in another dtype": {"input": x.double()},
        "h0 in another dtype": {"h0": h.double()},
        "h0 for two directions": {"h0": h.repeat(2, 1, 1)},
        "h0 with another batch": {"h0": h[:, :-1]},
        "h0 of another width": {"h0": h[..., :-1]},
        "h0 without directions": {"h0": h[0]},
        "bidirectional with the weights of one": {"bidirectional": True},
        "no weights": {"weights": []},
        "one weight too few": {"weights": weights[:-1]},
        "one weight too many": {"weights": [*weights, weights[-1]]},
        "biases missing": {"has_biases": True, "weights": weights[:2]},
        "biases unexpected": {"has_biases": False},
        "w_ih with too few rows": {"weights": [weights[0][:-1], *weights[1:]]},
        "w_ih without columns": {"weights": [weights[0][:, :0], *weights[1:]]},
        "w_ih flat": {"weights": [weights[0].flatten(), *weights[1:]]},
        "w_hh not square": {"weights": [weights[0], weights[1][:, :-1], *weights[2:]]},
        "w_hh transposed": {"weights": [weights[0], weights[1].t(), *weights[2:]]},
        "b_ih too long": {"weights": [*weights[:2], weights[2].repeat(2), weights[3]]},
        "b_hh two-dimensional": {"weights": [*weights[:3], weights[3].unsqueeze(0)]},
        "a weight in another dtype": {"weights": [weights[0], weights[1].double(), *weights[2:]]},
    }
    if case.cell == "lstm":
        c = problem.states[1]
        wrong |= {
            "c0 of another width": {"c0": c[..., :-1]},
            "c0 with another batch": {"c0": c.repeat(1, 2, 1)},
            "c0 in another dtype": {"c0": c.double()},
            "projection without its weight": {"has_projection": True},
        }
    if sizes is None:
        wrong |= {
            "no steps": {"input": x[:0]},
            "batch_sizes for dense input": {"batch_sizes": torch.tensor([3, 3])},
        }
    else:
        changes = {
            "increasing": [1, 2, 4],
            "zero": [4, 3, 0],
            "negative": [4, 4, -1],
            "with a negative that adds up": [4, 4, -5, 4],
            "above the batch": [5, 2],
            "of too few rows": [3, 2, 1],
            "of too many rows": [4, 4, 4],
            "enormous": [2**62, 2**62, 2**62, 2**62 + 7],
            "empty": [],
        }
        wrong |= {f"batch_sizes {name}": {"batch_sizes": torch.tensor(v, dtype=torch.int64)} for name, v in changes.items()}
        wrong |= {
            "batch_sizes in int32": {"batch_sizes": sizes.int()},
            "batch_sizes as floats": {"batch_sizes": sizes.float()},
            "batch_sizes two-dimensional": {"batch_sizes": sizes.unsqueeze(0)},
            "packed input without batch_sizes": {"batch_sizes": None},
        }
    return wrong


DENSE, PACKED = {"steps": 2, "batch": 3}, {"lengths": (3, 2, 1, 1)}
BAD_FORWARD = [
    (Case(cell, **options), name) for cell in GATES for options in (DENSE, PACKED) for name in _wrong(Case(cell, **options))
]


@pytest.mark.backends("cpu")
@pytest.mark.parametrize(("case", "what"), BAD_FORWARD, ids=lambda v: str(v))
def test_bad_arguments_to_forward_raise(backend: str, case: Case, what: str) -> None:
    call = forward_call(backend, case).changed(**_wrong(case)[what])
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        call()


@pytest.mark.backends("cpu")
@pytest.mark.parametrize(("case", "what"), BAD_FORWARD, ids=lambda v: str(v))
def test_bad_arguments_to_backward_raise(backend: str, case: Case, what: str) -> None:
    call = backward_call(backend, case).changed(**_wrong(case)[what])
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        call()


@pytest.mark.backends("cpu")
@pytest.mark.parametrize("name", ["output", "gates", "cells", "grad_output", "grad_h_n", "grad_c_n"])
@pytest.mark.parametrize("change", ["too short", "empty", "another dtype", "another dimension"])
@pytest.mark.parametrize("case", [Case(cell, lengths=lengths) for cell in GATES for lengths in (None, (3, 1))], ids=str)
def test_bad_saved_tensors_and_gradients_to_backward_raise(backend: str, case: Case, name: str, change: str) -> None:
    call = backward_call(backend, case)
    if name not in call.arguments:
        pytest.skip("a GRU has no cell state")
    value = call.arguments[name]
    changed = {
        "too short": value[..., :-1],
        "empty": value.new_empty(0),
        "another dtype": value.double(),
        "another dimension": value.unsqueeze(-1),
    }[change]
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        call.changed(**{name: changed})()


@every_backend
@pytest.mark.parametrize("cell", GATES)
def test_an_empty_batch_gives_empty_results_and_zero_weight_gradients(backend: str, cell: str) -> None:
    case = Case(cell, batch=0, bidirectional=True)
    output, h_n, *_ = forward_call(backend, case)()
    assert output.shape == (4, 0, 14)
    assert h_n.shape == (2, 0, 7)
    *_, grad_weights = backward_call(backend, case)()
    assert [g.shape for g in grad_weights] == [w.shape for w in draw(case).weights.values()]
    assert not any(g.any() for g in grad_weights)


@every_backend
@pytest.mark.parametrize("cell", GATES)
def test_no_hidden_units_give_empty_results(backend: str, cell: str) -> None:
    weights = [torch.empty(0, 5), torch.empty(0, 0), torch.empty(0), torch.empty(0)]
    states = {name: torch.empty(1, 3, 0) for name in ("h0", "c0")[: 2 if cell == "lstm" else 1]}
    call = forward_call(backend, Case(cell)).changed(weights=weights, **states)
    results = call()
    assert results[0].shape == (4, 3, 0)
    assert results[1].shape == (1, 3, 0)


@every_backend
@pytest.mark.parametrize("cell", GATES)
def test_no_input_features_leave_the_recurrence(backend: str, cell: str) -> None:
    case = Case(cell, input_size=1, dtype=torch.float64)
    call, zeros = forward_call(backend, case), forward_call(backend, case)
    zeros.arguments["input"] = torch.zeros(4, 3, 1, dtype=torch.float64)
    weights = call.arguments["weights"]
    weightless = [weights[0].new_empty(weights[0].size(0), 0), *weights[1:]]
    without = call.changed(input=weights[0].new_empty(4, 3, 0), weights=weightless)
    assert_same_mathematics(without()[0], zeros()[0])


@pytest.mark.backends("cpu")
@pytest.mark.parametrize("what", ["batch", "steps", "hidden units", "input features", "packed rows"])
@pytest.mark.parametrize("cell", GATES)
def test_sizes_whose_products_overflow_are_refused(backend: str, cell: str, what: str) -> None:
    """Expanded tensors have any size and no memory: the kernels must not believe a product that wrapped around.

    Each tensor here is one that torch accepts: it has fewer than 2**63 elements.
    """
    gates, hidden, width = GATES[cell], 7, 5
    steps, batch = 4, 3
    if what == "batch":
        batch = 2**58
    elif what == "steps":
        steps = 2**58
    elif what == "hidden units":
        hidden = 2**28
    elif what == "input features":
        width = 2**57
    state = torch.zeros(1, 1, 1).expand(1, batch, hidden)
    weights = [torch.zeros(1, 1).expand(gates * hidden, n) for n in (width, hidden)] + [torch.zeros(1).expand(gates * hidden)] * 2
    changes = {"input": torch.zeros(1, 1, 1).expand(steps, batch, width), "weights": weights, "h0": state}
    changes |= {"c0": state} if cell == "lstm" else {}
    if what == "packed rows":
        changes |= {"input": torch.zeros(1, 1).expand(2**60, width), "batch_sizes": torch.tensor([2**60])}
    with pytest.raises(RuntimeError):
        forward_call(backend, Case(cell)).changed(**changes)()


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", GATES)
def test_meta_tensors_get_the_shapes_and_dtypes_of_real_ones(backend: str, cell: str, dtype: torch.dtype) -> None:
    for make in (forward_call, backward_call):
        call = make(backend, Case(cell, dtype=dtype, bidirectional=True))
        meta = {
            name: [t.to("meta") for t in value] if isinstance(value, list) else value.to("meta")
            for name, value in call.arguments.items()
            if isinstance(value, (Tensor, list))
        }
        for real, fake in zip(_tensors([*call()]), _tensors([*call.changed(**meta)()]), strict=True):
            assert (real.shape, real.dtype) == (fake.shape, fake.dtype)
            assert fake.is_meta


def test_every_schema_is_functional() -> None:
    """No operator may mark an argument as written to or aliased."""
    for family in FAMILY.values():
        for cell in GATES:
            for direction in ("forward", "backward"):
                schema = operator(family, f"{cell}_{direction}")._schema
                assert all(argument.alias_info is None for argument in (*schema.arguments, *schema.returns)), schema
