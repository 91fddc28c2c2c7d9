"""What to compute: shapes and flags (:class:`Case`), concrete tensors for them (:class:`Problem`), and results by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnkernels import functional

GATES = {"lstm": 4, "gru": 3}
N_STATES = {"lstm": 2, "gru": 1}


@dataclass(frozen=True)
class Case:
    """A stack of layers and the batch it is given. ``lengths``, never increasing, make the batch a packed one."""

    cell: str
    input_size: int = 5
    hidden_size: int = 7
    steps: int = 4
    batch: int = 3
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    proj_size: int = 0
    lengths: tuple[int, ...] | None = None
    dtype: torch.dtype = torch.float32
    #: What gradients are wanted of: any of "input", "states", "weights".
    wants: tuple[str, ...] = ("input", "states", "weights")

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def state_size(self) -> int:
        """Width of what recurs: the projection's size, or the hidden size."""
        return self.proj_size or self.hidden_size

    @property
    def state_shapes(self) -> list[tuple[int, int, int]]:
        rows = (self.num_layers * self.directions, len(self.lengths) if self.lengths else self.batch)
        return [(*rows, self.state_size), (*rows, self.hidden_size)][: N_STATES[self.cell]]

    @property
    def batch_sizes(self) -> Tensor | None:
        if self.lengths is None:
            return None
        return torch.tensor([sum(length > t for length in self.lengths) for t in range(self.lengths[0])])

    @property
    def input_shape(self) -> tuple[int, ...]:
        if self.lengths is None:
            return (self.steps, self.batch, self.input_size)
        return (sum(self.lengths), self.input_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (*self.input_shape[:-1], self.directions * self.state_size)

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter names and shapes in torch.nn's registration order."""
        shapes: dict[str, tuple[int, ...]] = {}
        rows = GATES[self.cell] * self.hidden_size
        for layer in range(self.num_layers):
            width = self.input_size if layer == 0 else self.directions * self.state_size
            for suffix in (f"_l{layer}", f"_l{layer}_reverse")[: self.directions]:
                shapes["weight_ih" + suffix] = (rows, width)
                shapes["weight_hh" + suffix] = (rows, self.state_size)
                if self.bias:
                    shapes["bias_ih" + suffix] = shapes["bias_hh" + suffix] = (rows,)
                if self.proj_size:
                    shapes["weight_hr" + suffix] = (self.proj_size, self.hidden_size)
        return shapes

    def __str__(self) -> str:
        batch = f"T{self.steps}-N{self.batch}" if self.lengths is None else "lengths" + ".".join(map(str, self.lengths))
        if len(batch) > 40:
            batch = f"packed-T{self.lengths[0]}-N{len(self.lengths)}"
        flags = [f"L{self.num_layers}"] * (self.num_layers > 1) + ["both"] * self.bidirectional
        flags += ["nobias"] * (not self.bias) + [f"P{self.proj_size}"] * bool(self.proj_size)
        flags += ["grads_" + "_".join(self.wants)] * (len(self.wants) < 3)
        dtype = str(self.dtype).removeprefix("torch.")
        return "-".join([self.cell, f"I{self.input_size}-H{self.hidden_size}", batch, *flags, dtype])


@dataclass(frozen=True)
class Problem:
    """A case with numbers in it. No tensor requires grad; :func:`evaluate` makes leaves of its own."""

    case: Case
    input: Tensor
    states: tuple[Tensor, ...]
    weights: dict[str, Tensor]
    #: Gradients that flow into output and final states; None: that result is not used.
    grads: tuple[Tensor | None, ...] = field(repr=False)

    def to(self, dtype: torch.dtype) -> Problem:
        """The same numbers in another dtype."""
        return Problem(
            replace(self.case, dtype=dtype),
            self.input.to(dtype),
            tuple(s.to(dtype) for s in self.states),
            {name: w.to(dtype) for name, w in self.weights.items()},
            tuple(None if g is None else g.to(dtype) for g in self.grads),
        )


def draw(case: Case, seed: int = 0) -> Problem:
    """Random numbers for a case, representable in its dtype: weights as torch.nn initialises them, all else normal."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(case.dtype)

    bound = 1 / math.sqrt(case.hidden_size)
    weights = {
        name: (torch.rand(shape, dtype=torch.float64, generator=generator) * 2 * bound - bound).to(case.dtype)
        for name, shape in case.weight_shapes.items()
    }
    states = tuple(normal(shape) for shape in case.state_shapes)
    grads = (normal(case.output_shape), *(normal(shape) for shape in case.state_shapes))
    return Problem(case, normal(case.input_shape), states, weights, grads)


#: (problem's case, input, states, weights) -> (output, *final states)
Implementation = Callable[[Case, Tensor, tuple[Tensor, ...], dict[str, Tensor]], tuple[Tensor, ...]]


def ours(case: Case, input: Tensor, states: tuple[Tensor, ...], weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """rnnkernels' functions, on whichever backend is selected."""
    structure = {
        "num_layers": case.num_layers,
        "has_biases": case.bias,
        "bidirectional": case.bidirectional,
        "batch_sizes": case.batch_sizes,
    }
    flat = list(weights.values())
    if case.cell == "gru":
        return functional.gru(input, states[0], flat, **structure)
    output, finals = functional.lstm(input, states, flat, has_projection=bool(case.proj_size), **structure)
    return output, *finals


def torch_nn(case: Case, input: Tensor, states: tuple[Tensor, ...], weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """torch.nn's module with these weights."""
    module_class = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.cell]
    options = {"proj_size": case.proj_size} if case.cell == "lstm" else {}
    module = module_class(
        case.input_size,
        case.hidden_size,
        case.num_layers,
        bias=case.bias,
        bidirectional=case.bidirectional,
        dtype=case.dtype,
        device="meta",  # the weights come from outside: nothing to initialise
        **options,
    )
    data = input if case.lengths is None else PackedSequence(input, case.batch_sizes)
    hx = states if case.cell == "lstm" else states[0]
    output, finals = torch.func.functional_call(module, weights, (data, hx))
    return (output if case.lengths is None else output.data), *(finals if case.cell == "lstm" else (finals,))


def evaluate(implementation: Implementation, problem: Problem) -> dict[str, Tensor]:
    """Run forward and backward -> every output and every wanted gradient by name."""
    case = problem.case
    input = problem.input.detach().clone().requires_grad_("input" in case.wants)
    states = tuple(s.detach().clone().requires_grad_("states" in case.wants) for s in problem.states)
    weights = {name: w.detach().clone().requires_grad_("weights" in case.wants) for name, w in problem.weights.items()}
    outputs = implementation(case, input, states, weights)
    names = ("output", "h_n", "c_n")
    results = {name: value.detach() for name, value in zip(names, outputs, strict=False)}
    used = [(value, grad) for value, grad in zip(outputs, problem.grads, strict=True) if grad is not None]
    if not case.wants or not used:
        return results
    torch.autograd.backward(*zip(*used, strict=True))
    leaves = {"input": input, **dict(zip(("h_0", "c_0"), states, strict=False)), **weights}
    # A leaf that the used outputs do not depend on gets no gradient, which counts as zero.
    results |= {
        f"grad of {name}": torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
        if leaf.requires_grad
    }
    return results
