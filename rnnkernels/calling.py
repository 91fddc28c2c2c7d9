"""How eager code calls operators and Functions without the Python machinery it has no use for.

An operator with a registered autograd rule enters Python once more at the Autograd key, and ``Function.apply`` binds its
arguments to the signature of ``forward`` each time: together they cost more than a whole LSTM step of a small model. Tracing by
``torch.compile`` and torch.func transforms do need that machinery, and get it.
"""

from __future__ import annotations

import torch


def traced() -> bool:
    """Whether ``torch.compile`` traces this call or a torch.func transform is applied to it."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def call_below_autograd(op: torch._ops.OpOverload, *arguments):
    """Call ``op`` where no gradient is recorded: in no_grad code and inside a Function's forward or backward.

    Autocast is off too: an operator computes in the dtypes it is given. So is view tracking: an operator's results are new
    tensors, and a caller may change them in place even if the last step of computing one was a reshape.
    """
    if traced():
        return op(*arguments)
    with torch._C._AutoDispatchBelowADInplaceOrView(), torch._C._DisableAutocast():
        return op(*arguments)


def apply(function: type[torch.autograd.Function], *arguments):
    """``function.apply(*arguments)``, given all of forward's arguments in order."""
    if torch.compiler.is_compiling():
        arguments = _distinct(arguments)
    if traced():
        return function.apply(*arguments)
    return super(torch.autograd.Function, function).apply(*arguments)


def _distinct(arguments: tuple) -> list:
    """The arguments with a view in place of each tensor that came before, such as a weight tied to another or one zero state for
    h and c: Dynamo refuses a Function that gets the same tensor twice."""
    result: list = []
    for argument in arguments:
        again = isinstance(argument, torch.Tensor) and any(argument is earlier for earlier in result)
        result.append(argument.view_as(argument) if again else argument)
    return result
