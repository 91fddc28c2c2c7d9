"""How ``torch.vmap`` runs the operators.

A mapped axis is folded into the batch axis, so that vmap over V copies of a batch of N costs one call with a batch of V*N. That
needs weights that all copies share and no weight gradients (each copy has its own); otherwise the copies run one after another.
Folding puts the mapped axis right behind the batch axis: rows that are consecutive stay so, and a packed batch stays packed,
with every batch size multiplied by V.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def rule(op: torch._ops.OpOverload) -> Callable:
    """The vmap rule of one layer operator, for :func:`torch.library.register_vmap`."""
    names = [argument.name for argument in op._schema.arguments]
    results = [result.name for result in op._schema.returns]

    def vmap(info, in_dims, *args):
        arguments = dict(zip(names, args, strict=True))
        dims = dict(zip(names, in_dims, strict=True))
        if dims["batch_sizes"] is not None:
            raise RuntimeError("vmap over batch_sizes is not supported: every mapped copy must have the same lengths")
        weights_mapped = any(dim is not None for dim in dims["weights"])
        if weights_mapped or arguments.get("needs_weight_grads", False):
            return _one_by_one(op, info.batch_size, arguments, dims)
        for name, value in arguments.items():
            if isinstance(value, Tensor) and name != "batch_sizes":
                arguments[name] = _fold(value, dims[name], info.batch_size, _batch_axis(name))
        if arguments["batch_sizes"] is not None:
            arguments["batch_sizes"] = arguments["batch_sizes"] * info.batch_size
        outputs = [
            _unfold(value, info.batch_size, _batch_axis(name))
            for name, value in zip(results, op(*arguments.values()), strict=True)
        ]
        return tuple(value for value, _ in outputs), tuple(dim for _, dim in outputs)

    return vmap


def _batch_axis(name: str) -> int:
    """The axis, from the end, of an operand's batch rows."""
    return -3 if name == "gates" else -2


def _fold(value: Tensor, dim: int | None, copies: int, axis: int) -> Tensor:
    behind = axis + 1  # where the mapped axis goes, counted from the end
    if value.dim() - (dim is not None) < -axis:
        # Not asked to be computed (shape (0,)): there is no batch to fold into.
        return value if dim is None else value.select(dim, 0)
    if dim is None:
        mapped = value.unsqueeze(behind - 1).expand(*value.shape[:behind], copies, *value.shape[behind:])
    else:
        mapped = value.movedim(dim, behind - 1)
    return mapped.flatten(axis - 1, axis)


def _unfold(value: Tensor | list[Tensor], copies: int, axis: int) -> tuple[Tensor | list[Tensor], int | list | None]:
    if isinstance(value, (list, tuple)):
        return list(value), [None] * len(value)
    if value.dim() < -axis:
        return value, None
    return value.unflatten(axis, (value.size(axis) // copies, copies)), value.dim() + axis + 1


def _one_by_one(op: torch._ops.OpOverload, copies: int, arguments: dict, dims: dict) -> tuple[tuple, tuple]:
    calls = []
    for copy in range(copies):
        own = {
            name: [_select(v, d, copy) for v, d in zip(value, dims[name], strict=True)]
            if name == "weights"
            else _select(value, dims[name], copy)
            for name, value in arguments.items()
        }
        calls.append(op(*own.values()))
    stacked = [
        [torch.stack(own) for own in zip(*copies_of, strict=True)]
        if isinstance(copies_of[0], (list, tuple))
        else torch.stack(copies_of)
        for copies_of in zip(*calls, strict=True)
    ]
    return tuple(stacked), tuple([0] * len(value) if isinstance(value, list) else 0 for value in stacked)


def _select(value: object, dim: int | None, index: int) -> object:
    return value if dim is None else value.select(dim, index)
