"""What a provider is: something that computes a :class:`benchmarks.cases.Problem`, or says why it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from torch import Tensor

from ..cases import Case, Problem

#: What a case computes, by name: output, h_n, c_n, grad_input, and for every parameter its gradient under the parameter's name.
#: Streaming cases have the output alone, of STREAMED_STEPS steps from zero states.
Results = dict[str, Tensor]


@dataclass(frozen=True)
class Prepared:
    """A problem made ready: weights converted, graphs compiled."""

    call: Callable[[], object]  # what is timed: computes the case once, whatever it returns; within scope()
    results: Callable[[], Results]  # computes it once more, and converts
    scope: Callable[[], AbstractContextManager] = nullcontext  # entered once for any number of calls, as an inference loop does


@dataclass(frozen=True)
class Provider:
    """Who computes. ``prepare``'s callables are called within ``scope()``."""

    name: str
    prepare: Callable[[Problem], Prepared]
    unsupported: Callable[[Case], str | None] = lambda case: None  # why it cannot do a case
    absent: str | None = None  # why it cannot be measured at all
    scope: Callable[[], AbstractContextManager] = nullcontext
    omits: frozenset[str] = frozenset()  # results it does not have
    own_memory: str | None = None  # why the peak of its memory says nothing
    version: str | None = None  # of what computes, where that is neither torch nor this package


@contextmanager
def within(*scopes: Callable[[], AbstractContextManager]) -> Iterator[None]:
    """All of them, the first outermost."""
    with ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(scope())
        yield


def named(mode: str, values: Sequence[Tensor], parameters: Sequence[str]) -> Results:
    """Names for what a mode computes, in the order: output, final states, gradients of the input and the parameters."""
    gradients = ["grad_input", *parameters]
    if mode == "backward":
        return dict(zip(gradients, values, strict=True))
    finals = len(values) - 1 - (len(gradients) if mode == "training" else 0)
    labels = ["output", *("h_n", "c_n")[:finals], *(gradients if mode == "training" else [])]
    return dict(zip(labels, values, strict=True))
