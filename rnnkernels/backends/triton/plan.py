"""Which schedule computes a layer on a device, and with which tiles: plain Python, tested without a GPU.

=============  ====================================================================================================
``program``    one program per block of batch rows runs all steps; weights stay on chip, h never leaves it
``grid``       programs share the hidden units, exchange h (or gate gradients) through memory and meet at a barrier
               each step; weights stay on chip, spread over the programs; all must be resident at once
``stepwise``   a library matrix product and a pointwise kernel per step; fits everything
=============  ====================================================================================================

Decisions are made per direction of time: forward and backward of one layer may differ. Steps do not enter but for a single one,
lengths never do. :func:`candidates` lists what fits, best guess first; :func:`plan` takes the first unless a measurement
(:mod:`.tuning`) says otherwise.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

#: The largest number of hidden units of which one program can hold all weights, by bytes per element.
MAX_ALONE = {2: 128, 4: 64}

#: Hidden units per program of the grid: with four gates, the 64 rows of one Hopper matrix instruction.
GRID_UNITS = 16

#: The largest number of hidden units for which a grid's products that are not split fit the registers, in half types.
MAX_WHOLE_PRODUCTS = 896

#: Copies of an operand that a precision multiplies with: 3xTF32 splits each into a large and a small part.
OPERAND_COPIES = {"ieee": 1, "tf32": 1, "tf32x3": 2}


class Device(NamedTuple):
    """What a plan has to know of a GPU."""

    processors: int  # streaming multiprocessors; 0: programs cannot wait for each other (the interpreter)
    shared_memory: int  # bytes one program may use


class Workload(NamedTuple):
    """One layer, one way through time."""

    cell: str  # "lstm" or "gru"
    backward: bool
    hidden_size: int
    batch: int
    directions: int
    element_size: int  # bytes
    precision: str  # of products: "ieee", "tf32" or "tf32x3"
    projected: bool = False
    one_step: bool = False


class Tiling(NamedTuple):
    """A schedule with its tile sizes; all zero where the schedule has no tiles."""

    schedule: str
    units: int = 0  # hidden units per program
    rows: int = 0  # batch rows per program
    chunk: int = 0  # hidden units per product
    split: int = 1  # parts of a product, one per warp
    num_warps: int = 0

    @property
    def alone(self) -> bool:
        return self.schedule == "program"

    def n_chunks(self, hidden_size: int) -> int:
        return 1 if self.alone else -(-hidden_size // self.chunk)

    def n_unit_blocks(self, hidden_size: int) -> int:
        return -(-hidden_size // self.units)

    def n_row_blocks(self, batch: int) -> int:
        return -(-batch // self.rows)

    def row_blocks_at_once(self, work: Workload, device: Device) -> int:
        """How many blocks of batch rows one launch may take; programs that wait for each other must all be resident."""
        if self.alone:
            return self.n_row_blocks(work.batch)
        return device.processors // (self.n_unit_blocks(work.hidden_size) * work.directions)

    def __str__(self) -> str:
        if self.schedule == "stepwise":
            return "stepwise"
        split = f" in {self.split} parts" if self.split > 1 else ""
        return (
            f"{self.schedule}: {self.units} units x {self.rows} rows per program, "
            f"products of {self.chunk}{split}, {self.num_warps} warps"
        )


STEPWISE = Tiling("stepwise")


def plan(work: Workload, device: Device) -> Tiling:
    """The best guess for a layer that nobody has measured."""
    return candidates(work, device)[0]


def candidates(work: Workload, device: Device) -> list[Tiling]:
    """Every tiling that fits, best guess first; ``stepwise`` always fits and comes last."""
    if why_stepwise(work, device) is not None:
        return [STEPWISE]
    return [*_on_chip(work, device), STEPWISE]


def why_stepwise(work: Workload, device: Device) -> str | None:
    """Why no schedule that keeps the weights on chip can take this layer, or None if one can."""
    if work.one_step:
        return "a single step loads the weights once in any case"
    if work.projected:
        return "a projected layer multiplies twice per step"
    if work.element_size not in MAX_ALONE:
        return "there is no float64 matrix instruction in Triton"
    if _on_chip(work, device):
        return None
    if not device.processors:
        return f"one program cannot hold the weights of {work.hidden_size} units, and here programs cannot wait for each other"
    return f"the device's {device.processors} processors cannot hold the weights of {work.hidden_size} units"


def shared_memory(tiling: Tiling, work: Workload) -> int:
    """Bytes of shared memory a program uses at most: weights, the other operand of a product, the exchange of its parts."""
    size = work.element_size * OPERAND_COPIES[work.precision]
    depth = tiling.chunk * tiling.n_chunks(work.hidden_size)
    weights = 4 * tiling.units * depth * size  # of the GRU's three gates too: see tiles.GATE_SLOTS
    operand = tiling.chunk * tiling.rows * size
    height = tiling.units if work.backward else 4 * tiling.units
    exchange = tiling.split * height * tiling.rows * 4
    return weights + operand + max(exchange, 4 * operand if tiling.alone else operand) + 1024


def _program_tilings(work: Workload) -> list[Tiling]:
    units = max(16, 1 << (work.hidden_size - 1).bit_length())
    if units > MAX_ALONE[work.element_size]:
        return []
    warps = 8 if units == 128 or (units == 64 and work.element_size == 4) else 4
    # One part per warp, if it is as deep as a product has to be: 16, in Triton 3.6 whatever the dtype. Backward gains: the
    # exchange that adds the parts also brings them into the layout of its many loads and stores. Forward has the exchange of the
    # gates in any case.
    splits = [warps, 1] if work.backward and units // warps >= 16 else [1]
    return [Tiling("program", units, 16, units, split, warps) for split in splits]


def _grid_tilings(work: Workload) -> list[Tiling]:
    # The largest chunk of at most 1024 bytes among those that pad the hidden size least; more rows leave registers for less.
    chunk = min((512, 256, 128), key=lambda c: (c * work.element_size > 1024, -(-work.hidden_size // c) * c))
    tilings = [Tiling("grid", GRID_UNITS, 16, chunk, 8, 8)]
    if work.precision != "tf32x3" or not work.backward:
        tilings.append(Tiling("grid", GRID_UNITS, 32, 128, 8, 8))
    if work.hidden_size <= MAX_WHOLE_PRODUCTS and work.element_size == 2:
        tilings.append(Tiling("grid", GRID_UNITS, 32, 128, 1, 8))
    return tilings


@functools.lru_cache(maxsize=1024)
def _on_chip(work: Workload, device: Device) -> tuple[Tiling, ...]:
    """The tilings that keep the weights on chip and fit, best guess first. Every call of a layer asks."""
    found = [t for t in (*_program_tilings(work), *_grid_tilings(work)) if _fits(t, work, device)]
    return tuple(sorted(found, key=lambda tiling: _rank(tiling, work, device)))


def _fits(tiling: Tiling, work: Workload, device: Device) -> bool:
    return shared_memory(tiling, work) <= device.shared_memory and tiling.row_blocks_at_once(work, device) > 0


def _rank(tiling: Tiling, work: Workload, device: Device) -> tuple[int, bool, int]:
    """Least launches first, then no barrier, then the least rows per program; of equals, the first listed."""
    launches = -(-tiling.n_row_blocks(work.batch) // tiling.row_blocks_at_once(work, device))
    return launches, not tiling.alone, tiling.rows
