"""The sets of cases to choose from: :data:`GRIDS` by name, or :func:`product` of what the command line names."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from .cases import Case

_CELLS = ("lstm", "gru")
_MODES = ("inference", "training")


def product(
    cells: Sequence[str], modes: Sequence[str], T: Sequence[int], B: Sequence[int], H: Sequence[int], dtypes: Sequence[str]
) -> Iterator[Case]:
    """Every combination, I = H; a streaming case for each H, B and dtype once."""
    cases = (
        Case(cell, mode, 1 if mode == "streaming" else t, b, h, h, dtype=dtype)
        for cell, mode, dtype, t, b, h in itertools.product(cells, modes, dtypes, T, B, H)
    )
    return iter(dict.fromkeys(cases))


def of_shapes(shapes: Iterable[tuple[int, int, int, int]]) -> Iterator[Case]:
    """Both cells, inference and training, of shapes (T, B, I, H)."""
    shapes = list(shapes)
    for cell, mode in itertools.product(_CELLS, _MODES):
        for shape in shapes:
            yield Case(cell, mode, *shape)


# --- small: everything once, in minutes ------------------------------------------------------------------------------------

_DENSE = (  # T, B, I, H: one step; one sequence; small; the usual; wide; and sizes that fit no vector or block
    (1, 1, 64, 64),
    (100, 1, 64, 64),
    (1000, 1, 64, 64),
    (100, 1, 256, 256),
    (100, 16, 128, 128),
    (100, 32, 256, 256),
    (50, 64, 512, 512),
    (20, 32, 1024, 1024),
    (37, 5, 31, 67),
    (61, 33, 100, 201),
)
_VARIED = ((100, 16, 128, 128), (61, 33, 100, 201))  # shapes on which every variant is measured


def _small() -> Iterator[Case]:
    for cell in _CELLS:
        for mode in _MODES:
            for shape in _DENSE:
                yield Case(cell, mode, *shape)
            for shape in _VARIED:
                base = Case(cell, mode, *shape)
                yield replace(base, packed=True)
                yield replace(base, bidirectional=True)
                yield replace(base, num_layers=2)
                yield replace(base, dtype="bfloat16")
                yield replace(base, dtype="float16")
                yield replace(base, dtype="float64")
                if cell == "lstm":
                    yield replace(base, proj_size=base.H // 2)
            yield replace(Case(cell, mode, 100, 32, 256, 256), packed=True)
            yield replace(Case(cell, mode, 100, 32, 256, 256), dtype="bfloat16")


# --- targets: what the targets of targets.py are judged on -------------------------------------------------------------------

# T from 1 to 1000, B from 1 to 128, H from 32 to 1024, sizes that fit no vector among them; no case takes the slowest provider
# much over a second on two cores, and all of it with peers less than 25 minutes.
_TARGET_DENSE = (
    (1, 1, 64, 64),
    (1, 1, 512, 512),
    (1, 32, 256, 256),
    (1, 128, 1024, 1024),
    (10, 1, 200, 200),
    (5, 128, 1024, 1024),
    (20, 32, 1024, 1024),
    (50, 64, 63, 63),
    (30, 64, 512, 512),
    (50, 128, 32, 32),
    (20, 128, 200, 650),
    (100, 1, 32, 32),
    (100, 1, 64, 64),
    (100, 1, 256, 256),
    (100, 1, 650, 650),
    (100, 1, 1024, 1024),
    (100, 4, 63, 63),
    (100, 8, 200, 200),
    (100, 16, 128, 128),
    (100, 16, 512, 512),
    (100, 32, 256, 256),
    (300, 2, 80, 512),
    (1000, 1, 64, 64),
    (1000, 1, 200, 200),
    (1000, 16, 63, 63),
)
_TARGET_VARIED = ((100, 1, 200, 200), (100, 16, 128, 128), (50, 32, 63, 200))
_TARGET_PACKED = ((400, 8, 256, 256), (100, 32, 128, 128), (100, 32, 256, 256), (30, 64, 512, 512), (100, 16, 63, 63))
_TARGET_BFLOAT16 = (
    (50, 16, 256, 256),
    (20, 32, 512, 512),
    (50, 1, 512, 512),
    (5, 32, 1024, 1024),
)  # torch.nn's is slow without AVX-512
_TARGET_STREAMED = (32, 64, 128, 256, 512)


def _targets() -> Iterator[Case]:
    for cell in _CELLS:
        for mode in _MODES:
            dense = dict.fromkeys((*_TARGET_DENSE, *_TARGET_PACKED, *_TARGET_BFLOAT16))
            yield from (Case(cell, mode, *shape) for shape in dense)
            for shape in _TARGET_VARIED:
                base = Case(cell, mode, *shape)
                yield replace(base, num_layers=2)
                yield replace(base, bidirectional=True)
                if cell == "lstm":
                    yield replace(base, proj_size=base.H // 2)
            yield from (Case(cell, mode, *shape, packed=True) for shape in _TARGET_PACKED)
            yield from (Case(cell, mode, *shape, dtype="bfloat16") for shape in _TARGET_BFLOAT16)
        yield from (Case(cell, "streaming", 1, 1, size, size) for size in _TARGET_STREAMED)


# --- tiny: for the tests -----------------------------------------------------------------------------------------------------


def _tiny() -> Iterator[Case]:
    for cell in _CELLS:
        for mode in _MODES:
            yield Case(cell, mode, 5, 3, 6, 7)
        yield Case(cell, "training", 5, 3, 6, 7, packed=True)
        yield Case(cell, "inference", 5, 3, 6, 7, dtype="bfloat16")
        yield Case(cell, "streaming", 1, 1, 7, 7)


GRIDS = {"small": _small, "targets": _targets, "tiny": _tiny}
