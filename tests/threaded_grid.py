"""All programs of an interpreted Triton kernel at once, as a GPU holds them resident at once.

Triton's interpreter runs the programs of a launch one after another, so a barrier among them would wait for ever. Here each
program is a thread. One runs at a time and hands over where it touches memory, to whom an :class:`Order` says: what happens is
decided by that order alone, so that a seed repeats it. This shows what programs compute under the interleavings tried.

What no interleaving shows is checked beside it: a program may only touch what another one wrote, or overwrite what another one
read, after a release that it acquired, as the GPU's memory model wants it (a vector clock per program and per atomic variable).
What happens among the threads of one program is not simulated.
"""

from __future__ import annotations

import functools
import inspect
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import triton.language as tl  # noqa: F401  (the interpreter patches the language in the globals of what it runs)
from triton.runtime import interpreter

from rnnkernels.backends.triton import sequence

#: Seconds after which programs that never touch memory are given up.
TIMEOUT = 120

#: Looks at unchanged atomic variables, per program, after which all are taken to wait for ever.
PATIENCE = 100

Order = Callable[[int, list[int], bool], int]
"""(the program that runs, the programs that have not ended, whether it just looked at an atomic variable in vain or has ended)
-> the program to run next."""


def shuffled(seed: int) -> Order:
    """After every access to memory, any program goes on."""
    generator = random.Random(seed)
    return lambda current, programs, waits: generator.choice(programs)


def ahead(current: int, programs: list[int], waits: bool) -> int:
    """Each program runs on until it has to wait; then the next one does."""
    return min((p for p in programs if p > current), default=programs[0]) if waits else current


def behind(current: int, programs: list[int], waits: bool) -> int:
    """The same with the last program first."""
    return max((p for p in programs if p < current), default=programs[-1]) if waits else current


class Race(AssertionError):
    """Two programs touched the same memory and nothing orders them."""


class Hang(AssertionError):
    """All programs wait, and none for anything that will happen."""


class _Stopped(Exception):
    """Ends a program because another one failed."""


class _Clocks:
    """Which accesses are ordered: Lamport's happens-before, by one vector clock per program."""

    def __init__(self, n: int) -> None:
        self.now = [[0] * n for _ in range(n)]
        for program in range(n):
            self.now[program][program] = 1
        self.released: dict[int, list[int]] = {}  # per atomic variable
        self.written: dict[int, tuple[int, int]] = {}  # per address: by whom, when
        self.read: dict[int, dict[int, int]] = defaultdict(dict)  # per address and program: when

    def load(self, program: int, addresses: list[int]) -> None:
        now = self.now[program]
        for address in addresses:
            writer, when = self.written.get(address, (program, 0))
            if writer != program and now[writer] < when:
                raise Race(f"program {program} reads what program {writer} wrote, and did not wait for it")
            self.read[address][program] = now[program]

    def store(self, program: int, addresses: list[int]) -> None:
        now = self.now[program]
        for address in addresses:
            accesses = {**self.read.pop(address, {}), **dict([self.written.get(address, (program, 0))])}
            for other, when in accesses.items():
                if other != program and now[other] < when:
                    raise Race(f"program {program} overwrites what program {other} uses, and did not wait for it")
            self.written[address] = (program, now[program])

    def atomic(self, program: int, address: int, semantic: str) -> None:
        now = self.now[program]
        if semantic in ("RELEASE", "ACQUIRE_RELEASE"):
            self.released[address] = [max(pair) for pair in zip(now, self.released.get(address, now), strict=True)]
            now[program] += 1
        if semantic in ("ACQUIRE", "ACQUIRE_RELEASE"):
            now[:] = [max(pair) for pair in zip(now, self.released.get(address, now), strict=True)]


class _Grid:
    """The programs of one launch."""

    def __init__(self, function: Callable, shape: tuple[int, int, int], order: Order) -> None:
        self.function, self.order = function, order
        self.indices = [(x, y, z) for x in range(shape[0]) for y in range(shape[1]) for z in range(shape[2])]
        self.shape = shape
        self.clocks = _Clocks(len(self.indices))
        self.alive = list(range(len(self.indices)))
        self.turns = [threading.Semaphore(0) for _ in self.indices]
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self.current = 0
        self.in_vain = 0

    def run(self, arguments: dict[str, Any]) -> None:
        """Run all programs to their end. The first error of any is raised here."""
        builder = interpreter.interpreter_builder
        builder.set_grid_dim(*self.shape)
        threads = [threading.Thread(target=self._program, args=(p, arguments), daemon=True) for p in self.alive]
        for thread in threads:
            thread.start()
        self._resume(self.order(self.current, self.alive, True))
        if not self.ended.wait(TIMEOUT):
            self.error = Hang(f"programs did not end within {TIMEOUT} s")
        if self.error is not None:
            raise self.error

    def hand_over(self, waits: bool) -> None:
        """Called by the running program after an access to memory; returns when its turn comes again."""
        program = self.current
        self.in_vain = self.in_vain + 1 if waits else 0
        if self.in_vain > PATIENCE * len(self.alive):
            raise Hang(f"{len(self.alive)} of {len(self.indices)} programs wait for what never comes")
        chosen = self.order(program, self.alive, waits)
        if chosen != program:
            self._resume(chosen)
            self._await_turn(program)

    def _resume(self, program: int) -> None:
        self.current = program
        self.turns[program].release()

    def _await_turn(self, program: int) -> None:
        self.turns[program].acquire()
        if self.error is not None:
            raise _Stopped
        interpreter.interpreter_builder.set_grid_idx(*self.indices[program])

    def _program(self, program: int, arguments: dict[str, Any]) -> None:
        try:
            self._await_turn(program)
            self.function(**arguments)
        except BaseException as error:
            self.error = self.error or error
        self.alive.remove(program)
        if self.alive:
            self._resume(self.order(program, self.alive, True))
        else:
            self.ended.set()


def start_all(order: Order, kernel: Any, grid: tuple[int, int, int], arguments: dict[str, Any], options: dict[str, Any]) -> None:
    """In place of ``sequence.start``: run all programs of ``grid`` at once, in this order."""
    function = kernel.rewrite()

    @functools.wraps(function)
    def run_grid(**converted: Any) -> None:
        programs = _Grid(function, grid, order)
        with _watched(programs):
            programs.run(converted)

    # To the interpreter this is a kernel with the same arguments and a grid of one program.
    run_grid.__signature__ = inspect.signature(function)
    try:
        interpreter.GridExecutor(run_grid, kernel.arg_names, (1, 1, 1))(**arguments)
    except interpreter.InterpreterError as error:
        # One is wrapped around the other for every function on the way; a test wants to see what happened.
        cause: BaseException = error
        while isinstance(cause, interpreter.InterpreterError) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise cause from None


@contextmanager
def _watched(programs: _Grid) -> Iterator[None]:
    """Every access to memory goes through the clocks and may hand over."""
    builder, clocks = interpreter.interpreter_builder, programs.clocks
    load, store, rmw = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw

    def addresses(pointers: Any, mask: Any) -> list[int]:
        return pointers.data[mask.data].ravel().tolist()

    def watched_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        clocks.load(programs.current, addresses(pointers, mask))
        result = load(pointers, mask, *rest)
        programs.hand_over(waits=False)
        return result

    def watched_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> None:
        clocks.store(programs.current, addresses(pointers, mask))
        store(pointers, value, mask, *rest)
        programs.hand_over(waits=False)

    def watched_rmw(operation: Any, pointer: Any, value: Any, mask: Any, semantic: Any, scope: Any) -> Any:
        clocks.atomic(programs.current, int(pointer.data.item()), semantic.name)
        result = rmw(operation, pointer, value, mask, semantic, scope)
        programs.hand_over(waits=not value.data.any())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_masked_load", watched_load)
        patch.setattr(builder, "create_masked_store", watched_store)
        patch.setattr(builder, "create_atomic_rmw", watched_rmw)
        yield


@contextmanager
def all_programs_at_once(order: Order) -> Iterator[None]:
    """Kernels launched in this block run on a :class:`_Grid`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "start", functools.partial(start_all, order))
        yield
