"""Making layers take one schedule of one backend, finding those that fit, and seeing what was launched."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnkernels import _library, use_backend
from rnnkernels.backends import Request, native
from rnnkernels.backends.triton import plan as triton_plan
from rnnkernels.backends.triton import sequence, tuning
from rnnkernels.backends.triton.plan import STEPWISE, Device, Tiling, Workload

from ..cases import Case

#: How products are computed: a dtype, and for float32 torch's switch for recurrent layers.
PRECISIONS = {
    "bfloat16": ("bfloat16", "tf32"),
    "float16": ("float16", "tf32"),
    "tf32": ("float32", "tf32"),
    "ieee": ("float32", "ieee"),
}

#: The backends under acceptance, the one that has more to prove first.
BACKENDS = ("cuda", "triton")


class Cuda(NamedTuple):
    """A schedule of the CUDA kernels, as ``native.forced`` takes it. Without a tile, the plan picks it, and how many CTAs share a
    direction."""

    schedule: str
    tile: str | None = None
    ctas: int | None = None

    def __str__(self) -> str:
        several = f" of {self.ctas}" if self.ctas is not None and self.ctas > 1 else ""
        return self.schedule + several + (f", {self.tile} tile" if self.tile else "")


class Choice(NamedTuple):
    """One way to compute a layer."""

    backend: str
    tiling: Tiling | Cuda

    @property
    def schedule(self) -> str:
        """What faults are counted by and results are listed under: "cuda cluster", "triton grid"."""
        return f"{self.backend} {self.tiling.schedule}"

    def __str__(self) -> str:
        return f"{self.backend} {self.tiling}"

    def as_dict(self) -> dict[str, Any]:
        return {"backend": self.backend, **self.tiling._asdict()}

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Choice:
        """The inverse of :meth:`as_dict`."""
        own = {name: value for name, value in fields.items() if name != "backend"}
        return cls(fields["backend"], Cuda(**own) if fields["backend"] == "cuda" else Tiling(**own))


TRITON_STEPWISE = Choice("triton", STEPWISE)


class Gpu(NamedTuple):
    """What plans have to know of a GPU."""

    triton: Device
    cuda: torch.device | None  # None: leave the CUDA kernels out


def torch_dtype(precision: str) -> torch.dtype:
    return getattr(torch, PRECISIONS[precision][0])


@contextmanager
def switched(precision: str) -> Iterator[None]:
    """Set the switch for recurrent layers, which cuDNN and our kernels follow."""
    switch = torch.backends.cudnn.rnn
    before, switch.fp32_precision = switch.fp32_precision, PRECISIONS[precision][1]
    try:
        yield
    finally:
        switch.fp32_precision = before


# --- without a GPU -------------------------------------------------------------------------------------------------------

#: In a dry run, the backend that computes in another's place.
_stand_ins: dict[str, str] = {}


def pretend_gpu() -> None:
    """For a dry run. Triton's interpreter runs the grid schedule where a single program takes part in each barrier: at most 16
    units. Schedules of the CUDA kernels are planned for an H200, and the CPU's kernels compute in their place."""
    sequence.INTERPRETER = sequence.INTERPRETER._replace(processors=1)
    _stand_ins["cuda"] = "cpu"
    limits = SimpleNamespace(major=9, minor=0, multi_processor_count=132, shared_memory_per_block_optin=232448)
    torch.cuda.get_device_properties = lambda device=None: limits


def backend_of(name: str) -> str:
    """The backend that computes: in a dry run another than the one that is planned for."""
    return _stand_ins.get(name, name)


def cuda_missing() -> str | None:
    """Why the CUDA kernels, or in a dry run what stands in for them, cannot be called; None if they can."""
    if importlib.util.find_spec("rnnkernels._C") is None:
        return "the module that plans the CUDA kernels' schedules was not built"
    return native.missing() if "cuda" in _stand_ins else _library.load_cuda().reason


# --- what fits -----------------------------------------------------------------------------------------------------------


def gpu(tensor: Tensor) -> Gpu:
    return Gpu(sequence.device_of(tensor), torch.device("cuda", 0) if cuda_missing() is None else None)


def workload(case: Case, precision: str, backward: bool) -> Workload:
    """What Triton's plan is asked: the layer of a case with one layer, one way through time."""
    with switched(precision):
        exactness = sequence.precision(torch_dtype(precision))
    size = torch_dtype(precision).itemsize
    directions = 2 if case.bidirectional else 1
    return Workload(case.cell, backward, case.H, case.B, directions, size, exactness, case.proj_size > 0, case.T == 1)


def request(case: Case, precision: str) -> Request:
    """What the CUDA kernels' plan is asked."""
    device, dtype = torch.device("cuda", 0), torch_dtype(precision)
    rest = {"proj_size": case.proj_size, "bidirectional": case.bidirectional, "packed": case.packed}
    return Request(case.cell, device, dtype, case.I, case.H, **rest)


def candidates(case: Case, precision: str, gpu: Gpu, backward: bool, backend: str) -> list[Choice]:
    """All that fit one pass, best guess first."""
    if backend == "triton":
        return [Choice("triton", tiling) for tiling in triton_plan.candidates(workload(case, precision, backward), gpu.triton)]
    if gpu.cuda is None:
        return []
    with switched(precision):
        plans = native.candidates(request(case, precision), case.B, backward)
    plans = sorted(plans, key=lambda plan: plan["microseconds"])
    return [Choice("cuda", Cuda(plan["schedule"], plan["tile"], plan["ctas"] if plan["tile"] else None)) for plan in plans]


def fitting(case: Case, precision: str, gpu: Gpu) -> list[Choice]:
    """What can compute a case, best guess first: in training what fits both ways through time. A schedule of the CUDA kernels
    comes first as a whole, each pass as planned for it, then with each of its tiles for both passes."""
    found: list[Choice] = []
    for backend in BACKENDS:
        ways = [candidates(case, precision, gpu, backward, backend) for backward in _passes(case)]
        if backend == "cuda":
            schedules = [{choice.tiling.schedule: None for choice in way} for way in ways]
            found += [Choice("cuda", Cuda(name)) for name in schedules[0] if all(name in other for other in schedules)]
        both = [choice for choice in ways[0] if all(choice in way for way in ways)]
        found += [choice for choice in both if choice not in found]
    return found


def _passes(case: Case) -> Iterable[bool]:
    return (False,) if case.mode == "inference" else (False, True)


def best_of_each(choices: list[Choice]) -> dict[str, Choice]:
    """Schedule -> the first of its choices."""
    found: dict[str, Choice] = {}
    for choice in choices:
        found.setdefault(choice.schedule, choice)
    return found


def planned(case: Case, precision: str, tensor: Tensor, backend: str) -> dict[str, Choice]:
    """What a backend's plan chooses: "forward" and, in training, "backward" -> choice."""
    ways = {"backward" if backward else "forward": backward for backward in _passes(case)}
    if backend == "triton":
        tilings = {way: sequence.tiling_for(workload(case, precision, backward), tensor) for way, backward in ways.items()}
        return {way: Choice("triton", tiling) for way, tiling in tilings.items()}
    plans = {way: cuda_plan(case, precision, backward) for way, backward in ways.items()}
    return {way: Choice("cuda", Cuda(p["schedule"], p["tile"], p["ctas"] if p["tile"] else None)) for way, p in plans.items()}


def cuda_plan(case: Case, precision: str, backward: bool) -> dict[str, Any]:
    """What the CUDA kernels would take for one pass, within :func:`only` what that leaves open."""
    with switched(precision):
        return native.plan(request(case, precision), case.B, backward)


# --- taking one ----------------------------------------------------------------------------------------------------------


@contextmanager
def only(choice: Choice) -> Iterator[None]:
    """Compute every layer inside with exactly this."""
    forced: Any = nullcontext()
    if isinstance(choice.tiling, Tiling):
        forced = tuning.forced(choice.tiling)
    else:
        forced = native.forced(choice.tiling.schedule, tile=choice.tiling.tile, ctas=choice.tiling.ctas)
    # The wish holds for this thread; backward of CUDA tensors would run in another.
    with use_backend(backend_of(choice.backend)), forced, torch.autograd.set_multithreading_enabled(False):
        yield


@contextmanager
def recorded() -> Iterator[list[dict[str, Any]]]:
    """The launches of Triton's sequence kernels inside, in order, each once: name, grid, compile-time numbers, registers, spills,
    shared memory."""
    launches: list[dict[str, Any]] = []
    seen = set()

    def start(kernel: Any, grid: tuple[int, int, int], arguments: dict[str, Any], options: dict[str, Any]) -> None:
        compiled = kernel[grid](**arguments, **options)
        names = [name for name in arguments if name.isupper() and name != "H"]
        launch = {"kernel": kernel.__name__, "grid": list(grid), **{name: arguments[name] for name in names}, **options}
        metadata = getattr(compiled, "metadata", None)
        launch |= {name: getattr(compiled, name) for name in ("n_regs", "n_spills") if hasattr(compiled, name)}
        launch |= {"shared": metadata.shared} if metadata is not None else {}
        if (identity := str(launch)) not in seen:
            seen.add(identity)
            launches.append(launch)

    with started_by(start):
        yield launches


@contextmanager
def started_by(start: Callable[..., None]) -> Iterator[None]:
    """Hand the launches of Triton's sequence kernels inside to ``start`` in place of Triton."""
    original, sequence.start = sequence.start, start
    try:
        yield
    finally:
        sequence.start = original
