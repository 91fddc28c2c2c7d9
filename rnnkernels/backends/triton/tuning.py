"""Measured tilings, kept on disk, in place of the plan's guesses.

A measurement holds for one GPU, one version of Triton and one :func:`key`: cell, pass, size of elements, precision, hidden size
and batch in classes. It is taken by :func:`tune`, from :func:`rnnkernels.triton_warmup` or, with the environment variable
RNNKERNELS_TRITON_AUTOTUNE=1, when a layer first meets a new key; never while a CUDA graph is being captured. Files lie in
RNNKERNELS_CACHE_DIR, by default ``rnnkernels`` in the user's cache directory. Removing them is always safe.

What was measured before a release comes with the package, in ``measured/``, for all GPUs of a compute capability; a measurement
of one's own goes before it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import triton
from torch import Tensor

from .plan import Device, Tiling, Workload, candidates, plan

_COMMITTED = Path(__file__).parent / "measured"

#: Steps of the sequence a candidate is timed on: many enough that what happens once per launch does not count.
TIMED_STEPS = 64


class _Wishes(threading.local):
    """What this thread asks for."""

    tiling: Tiling | None = None
    autotune = os.environ.get("RNNKERNELS_TRITON_AUTOTUNE", "0") == "1"


_wishes = _Wishes()


@contextmanager
def forced(tiling: Tiling) -> Iterator[None]:
    """Compute every layer in a ``with`` block, in this thread, with exactly this tiling. A backward pass of CUDA tensors runs in
    a thread of its own, which this does not reach: use ``torch.autograd.set_multithreading_enabled(False)`` around it."""
    previous, _wishes.tiling = _wishes.tiling, tiling
    try:
        yield
    finally:
        _wishes.tiling = previous


@contextmanager
def autotuning(wanted: bool) -> Iterator[None]:
    """In a ``with`` block, in this thread, measure (or do not) layers that nobody has measured when they are first computed."""
    previous, _wishes.autotune = _wishes.autotune, wanted
    try:
        yield
    finally:
        _wishes.autotune = previous


def tiling_for(work: Workload, device: Device, tensor: Tensor) -> Tiling:
    """The tiling for a layer on the device of ``tensor``: forced, measured, or planned, in this order."""
    if _wishes.tiling is not None:
        return _wishes.tiling
    if not tensor.is_cuda:
        return plan(work, device)
    measured = _measured(tensor.device.index).get(key(work))
    if measured is not None and measured in candidates(work, device):
        return measured
    if _wishes.autotune and not torch.cuda.is_current_stream_capturing() and len(candidates(work, device)) > 1:
        return tune(work, device, tensor)
    return plan(work, device)


def key(work: Workload) -> str:
    """The class of layers one measurement holds for: hidden sizes up to the next multiple of 64, batches up to a power of two."""
    hidden_size = -(-work.hidden_size // 64) * 64
    batch = 1 << (work.batch - 1).bit_length()
    way = "backward" if work.backward else "forward"
    return f"{work.cell} {way} {work.element_size} bytes {work.precision} H<={hidden_size} B<={batch} D={work.directions}"


# --- measuring -----------------------------------------------------------------------------------------------------------


def tune(work: Workload, device: Device, tensor: Tensor) -> Tiling:
    """Time every candidate on random numbers, keep the fastest on disk and return it.

    A candidate that fails to compile or launch is left out with a warning; ``stepwise``, of which library products are the larger
    part, is always among them.
    """
    run = _problem(work, tensor)
    times: dict[Tiling, float] = {}
    for tiling in candidates(work, device):
        try:
            with forced(tiling):
                run()
                times[tiling] = triton.testing.do_bench(run, warmup=5, rep=20)
        except RuntimeError as error:
            warnings.warn(f"rnnkernels leaves out a tiling that failed ({tiling}): {error}", stacklevel=2)
    best = min(times, key=times.__getitem__) if times else plan(work, device)
    _remember(tensor.device.index, key(work), best)
    return best


def _problem(work: Workload, tensor: Tensor) -> Callable[[], object]:
    """One pass over a layer like ``work`` with random numbers: what is timed."""
    from . import gru, lstm  # they need sequence.py, which needs this module

    H, N, D, T = work.hidden_size, work.batch, work.directions, TIMED_STEPS
    lstm_layer = work.cell == "lstm"
    G = 4 if lstm_layer else 3

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, device=tensor.device, dtype=tensor.dtype) / H**0.5

    states = [new(D, N, H) for _ in range(2 if lstm_layer else 1)]
    weights = [w for _ in range(D) for w in (new(G * H, H), new(G * H, H), new(G * H), new(G * H))]
    flags = (True, False, D == 2) if lstm_layer else (True, D == 2)
    cell = lstm if lstm_layer else gru
    input = new(T, N, H)
    arguments = (input, None, *states, weights, *flags)
    if not work.backward:
        return lambda: cell.forward(*arguments, True)
    with forced(Tiling("stepwise")):
        output, *rest = cell.forward(*arguments, True)
    saved = rest[len(states) :]
    operands = (input, None, *states, weights, output, *saved, *flags)
    return lambda: cell.backward(output, *states, *operands, False, False)


# --- the files -----------------------------------------------------------------------------------------------------------


def cache_file(gpu: str) -> Path:
    """Where a GPU's measurements are kept."""
    directory = os.environ.get("RNNKERNELS_CACHE_DIR")
    base = Path(directory) if directory else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rnnkernels"
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return base / f"triton-{triton.__version__}-{name}.json"


def read(file: Path) -> dict[str, Tiling]:
    """A file's measurements by key; empty, with a warning, if it cannot be understood."""
    try:
        return {name: Tiling(**fields) for name, fields in json.loads(file.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        warnings.warn(f"rnnkernels ignores the measurements in {file}: {error}", stacklevel=2)
        return {}


def write(file: Path, measurements: dict[str, Tiling]) -> None:
    """Add measurements to a file, which other processes may be reading or adding to: the last one wins, none sees half a file."""
    merged = read(file) | measurements
    text = json.dumps({name: tiling._asdict() for name, tiling in sorted(merged.items())}, indent=1)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as part:
        part.write(text + "\n")
    os.replace(part.name, file)


def committed(capability: tuple[int, int]) -> dict[str, Tiling]:
    """The package's own measurements by key, on a GPU of this compute capability; whatever version of Triton took them, they are
    better than a guess."""
    file = _COMMITTED / f"sm_{capability[0]}{capability[1]}.json"
    if not file.exists():
        return {}
    return {name: Tiling(**fields) for name, fields in json.loads(file.read_text(encoding="utf-8"))["tilings"].items()}


@functools.cache
def _measured(index: int) -> dict[str, Tiling]:
    return committed(torch.cuda.get_device_capability(index)) | read(cache_file(torch.cuda.get_device_name(index)))


def _remember(index: int, name: str, tiling: Tiling) -> None:
    _measured(index)[name] = tiling
    file = cache_file(torch.cuda.get_device_name(index))
    try:
        write(file, {name: tiling})
    except OSError as error:
        warnings.warn(f"rnnkernels cannot keep measurements in {file}: {error}", stacklevel=2)
