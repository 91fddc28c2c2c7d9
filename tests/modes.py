"""Modes that a call may be in and that change nothing: what they are for is who computes in them, and what they see."""

from __future__ import annotations

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Nothing(TorchFunctionMode):
    """Closes the ways past Python: direct calls and autograd Functions in C++."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Watching(TorchDispatchMode):
    """Keeps the names of the operators that are called, in :attr:`seen`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))
