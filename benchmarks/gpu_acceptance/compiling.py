"""Compile kernels of later stages on the processor's other cores, while the GPU is busy with earlier ones.

Triton keeps compiled kernels on disk, where every process finds them. The workers use no GPU: they run the launchers on tensors
without memory (torch's ``meta`` device) and hand each launch to Triton's compiler instead of the driver.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget

from rnnkernels.backends.triton import sequence
from rnnkernels.backends.triton.plan import STEPWISE, Device, Tiling

from ..cases import Case
from . import layers, parity, repeatability, speed, tuning
from .schedules import Choice, Gpu, best_of_each, fitting, only, started_by, switched
from .stage import Row, Stage, describe_error


class Target(NamedTuple):
    """What the compiler has to know of the GPU."""

    capability: int  # 90 for compute capability 9.0
    device: Device


class Job(NamedTuple):
    precision: str
    case: Case
    tiling: Tiling


def run(stage: Stage) -> None:
    """Compile what the other stages will launch, the first needed first."""
    hardware = next(row for row in (stage.other("machine") or {})["rows"] if row["key"] == "hardware")
    device = Device(**hardware["plan"])
    target = Target(hardware["major"] * 10 + hardware["minor"], device)
    todo = jobs(device)
    # Two cores stay free for the stages that run meanwhile.
    workers = max(1, min(len(todo), (os.cpu_count() or 2) - 3))
    stage.fact("jobs", len(todo))
    stage.fact("workers", workers)
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(target, os.getpid())) as pool:
        futures = {pool.submit(compile_job, job): job for job in todo}
        for future in as_completed(futures):
            job = futures[future]
            if stage.row(f"{job.case}, {job.precision}: {job.tiling}", future.result) is None:
                pool.shutdown(cancel_futures=True)
                break


def jobs(device: Device) -> list[Job]:
    """Cases and tilings, each kernel once, in the order in which stages need them."""
    found: dict[Any, Job] = {}
    for job in _all(device):
        case = job.case
        aligned = [n % 16 == 0 for n in (case.H, case.B)]  # Triton compiles sizes that are multiples of 16 apart
        identity = (case.cell, case.dtype, job.precision, case.mode, case.packed, case.bidirectional, job.tiling, *aligned)
        found.setdefault((*identity, job.tiling != STEPWISE and job.tiling.n_chunks(case.H)), job)
    return list(found.values())


def _all(device: Device) -> Iterator[Job]:
    gpu = Gpu(device, cuda=None)  # only Triton's kernels are compiled as they are needed
    first_checks = list(parity.rows(gpu, dry=False))
    n_first = sum(len(best_of_each(fitting(case, precision, gpu))) for precision, case in parity.fixed_cases())
    yield from map(_job, first_checks[:n_first])
    yield from map(_job, repeatability.rows(gpu, dry=False))
    for precision, case in speed.cases(dry=False):
        yield from (_job((precision, case, choice)) for choice in best_of_each(fitting(case, precision, gpu)).values())
    for precision, case, _ in tuning.workloads(dry=False):
        if precision != "ieee":
            yield from (_job((precision, case, choice)) for choice in fitting(case, precision, gpu))
    yield from map(_job, first_checks[n_first:])


def _job(row: tuple[str, Case, Choice]) -> Job:
    precision, case, choice = row
    assert isinstance(choice.tiling, Tiling)
    return Job(precision, case, choice.tiling)


# --- in a worker ---------------------------------------------------------------------------------------------------------


class _CompilerOnly:
    """Stands in for Triton's driver: names the target and has no device."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _begin(target: Target, parent: int) -> None:
    """A worker's first act."""
    if parent != os.getpid():
        os.nice(10)
    torch.set_num_threads(1)
    triton.runtime.driver.set_active(_CompilerOnly(target.capability))
    sequence.device_of = lambda tensor: target.device


def compile_job(job: Job) -> Row:
    """Compile the sequence kernels that a case launches with a tiling: name -> registers are the driver's to know, so only what
    the compiler says."""
    compiled: list[Row] = []

    def start(kernel: Any, grid: tuple[int, int, int], arguments: dict[str, Any], options: dict[str, Any]) -> None:
        begin = time.monotonic()
        result = kernel.warmup(grid=grid, **arguments, **options)
        seconds = round(time.monotonic() - begin, 2)
        if seconds > 0.05 or not compiled:
            compiled.append({"kernel": kernel.__name__, "shared": result.metadata.shared, "seconds": seconds})

    # Steps do not enter the stepwise kernels: two of them launch everything.
    case = replace(job.case, T=2) if job.tiling == STEPWISE else job.case
    device = torch.device("meta")
    try:
        with switched(job.precision), started_by(start), only(Choice("triton", job.tiling)):
            layers.forward_pass(case, job.precision, device, "triton")()
            if case.mode == "training":
                layers.backward_pass(case, job.precision, device, "triton")()
    except Exception as error:
        print(f"{job}: {describe_error(error)}", file=sys.stderr)
        return {"error": describe_error(error), "kernels": compiled}
    return {"kernels": compiled}


__all__ = ["Job", "Target", "compile_job", "jobs", "run"]
