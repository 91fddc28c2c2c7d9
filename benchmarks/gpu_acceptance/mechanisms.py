"""Stage 7: what the mechanisms cost of which schedules are made; the numbers that a cost model is fitted to.

First those of the CUDA kernels, each by a run of the program that the stage build compiled of ``csrc/cuda/mechanisms.cu``, then
those of Triton's kernels and of torch. Costs of repeated things are slopes: the time of many rounds less the time of few, by the
difference, so that what a launch costs once is not in them. Everything is in the unit that the row's key names; ``mechanism`` and
``numbers`` are by what ``refit.py`` finds a row.
"""

from __future__ import annotations

import functools
import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch
import triton

from . import build, timing
from . import mechanism_kernels as kernels
from .schedules import pretend_gpu, switched
from .stage import Row, Stage

#: A median, p20 and p80 in seconds of device time for one call.
Seconds = Callable[[Callable[[], object]], list[float]]

_QUANTILES = [0.5, 0.2, 0.8]

#: Few and many nodes of a graph.
_NODES = (100, 1100)

#: One run of the program, in seconds: what it waits for, it waits for 10 s at most.
_PATIENCE = 30

#: The program's arguments, and what they measure.
PROGRAM = (
    ("clock_rate", (), "clock, cycles per us"),
    ("remote_latency", (2,), "asynchronous store to another CTA of a cluster of 2, until it is seen, us"),
    ("remote_latency", (8,), "asynchronous store to another CTA of a cluster of 8, until it is seen, us"),
    ("remote_latency", (16,), "asynchronous store to another CTA of a cluster of 16, until it is seen, us"),
    ("cluster_exchange", (8, 8, 15), "exchange of 128 bytes by each CTA in 15 clusters of 8, us"),
    ("cluster_exchange", (8, 64, 15), "exchange of 1 KiB by each CTA in 15 clusters of 8, us"),
    ("cluster_exchange", (8, 128, 15), "exchange of 2 KiB by each CTA in 15 clusters of 8, us"),
    ("cluster_exchange", (16, 64, 7), "exchange of 1 KiB by each CTA in 7 clusters of 16, us"),
    ("cluster_exchange", (8, 64, 1), "exchange of 1 KiB by each CTA in one cluster of 8, us"),
    ("remote_load", (2,), "load from another CTA's shared memory, us"),
    ("flag_latency", (), "release store until an acquire load on another multiprocessor, us"),
    ("word_latency", (), "relaxed store until a relaxed load on another multiprocessor, us"),
    ("flag_barrier", (32,), "meeting of 32 CTAs by flags, us"),
    ("flag_barrier", (128,), "meeting of 128 CTAs by flags, us"),
    ("grid_barrier", (32,), "grid barrier of 32 CTAs, us"),
    ("grid_barrier", (128,), "grid barrier of 128 CTAs, us"),
    ("cta_barrier", (256,), "barrier of a CTA of 8 warps, us"),
    ("product_latency_bf16", (), "product m16n8k16 in bfloat16 that the next depends on, us"),
    ("product_latency_tf32", (), "product m16n8k8 in TF32 that the next depends on, us"),
    ("product_rate_bf16", (), "products m16n8k16 in bfloat16 of 8 warps, per us and multiprocessor"),
    ("product_rate_tf32", (), "products m16n8k8 in TF32 of 8 warps, per us and multiprocessor"),
    ("cell_latency_lstm", (), "an LSTM's cell that the next depends on, us"),
    ("cell_latency_gru", (), "a GRU's cell that the next depends on, us"),
    ("shared_rate", (256,), "reads of shared memory, bytes per us and multiprocessor"),
    ("global_latency", (1 << 12,), "load past the first-level cache from 4 MiB, us"),
    ("global_rate", (1 << 12,), "reads of 4 MiB, from the second-level cache, bytes per us"),
    ("global_rate", (1 << 21,), "reads of 2 GiB, from memory, bytes per us"),
    *(("resident_clusters", (n, 200), f"clusters of {n} CTAs with 200 KiB each at once") for n in (2, 4, 8, 16)),
    ("launch_on_host", (), "launch of an empty kernel, us of the host"),
    ("graph_node", (), "empty kernel as a graph's node, us"),
)


def run(stage: Stage) -> None:
    if stage.dry:
        pretend_gpu()
    device, dry = stage.torch_device, stage.dry
    seconds = _host_seconds if dry else _device_seconds

    def row(key: str, measure: Callable[..., Row], *arguments: Any) -> None:
        stage.row(key, functools.partial(measure, *arguments))

    for mechanism, numbers, what in PROGRAM[:1] if dry else PROGRAM:
        row(what, _program, stage, mechanism, numbers)
    row("launch of a Triton kernel, us of the host", _launch_on_host, device, dry)
    row("launch of a torch operation, us of the host", _torch_on_host, device, dry)
    row("empty Triton kernel as a graph's node, us", _graph_node, device, dry)
    for programs in (1,) if dry else (32, 64, 132):
        for warps in (4, 8):
            row(f"barrier among {programs} programs of {warps} warps, us", _barrier, device, seconds, dry, programs, warps)
    for programs, own in ((1, 16),) if dry else ((32, 256), (64, 256), (128, 256), (32, 1024)):
        row(f"exchange of {own * 2} bytes by each of {programs} programs, us", _exchange, device, seconds, dry, programs, own)
    for size in (1 << 12,) if dry else (1 << 17, 1 << 20, 1 << 23):
        row(f"read of {size >> 10} KiB by every program from the second-level cache, TB/s", _cache, device, seconds, dry, size)
    for H, B in ((8, 2),) if dry else ((256, 16), (512, 64), (1024, 64), (1024, 256)):
        row(f"matrix product and pointwise kernel of H={H} B={B} in a graph, us per step", _step, device, dry, H, B)
    row("device-to-device copy, TB/s read and written", _copy, device, seconds, dry)
    for precision in ("bfloat16", "float16", "tf32", "ieee"):
        row(f"matrix product in {precision}, TFLOP/s", _product, device, seconds, dry, precision)


def _program(stage: Stage, mechanism: str, numbers: tuple[int, ...]) -> Row:
    row: Row = {"mechanism": mechanism, "numbers": list(numbers)}
    if stage.dry:
        return {**row, "unsupported": "it needs a GPU"}
    if not build.PROGRAM.exists():
        return {**row, "unsupported": "the program was not built"}
    command = [str(build.PROGRAM), mechanism, *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
    if done.returncode:
        return {**row, "error": done.stderr.strip()[-1000:]}
    return row | json.loads(done.stdout)


def _host_seconds(call: Callable[[], object]) -> list[float]:
    begin = time.perf_counter()
    call()
    return [time.perf_counter() - begin] * 3


def _device_seconds(call: Callable[[], object]) -> list[float]:
    call()
    return [ms * 1e-3 for ms in triton.testing.do_bench(call, warmup=10, rep=50, quantiles=_QUANTILES)]


def _row(values: list[float]) -> Row:
    median, low, high = values
    return {"median": median, "p20": min(low, high), "p80": max(low, high)}


def _slope(seconds: Seconds, call: Callable[[int], object], few: int, many: int) -> Row:
    """Microseconds per round."""
    short, long = seconds(lambda: call(few)), seconds(lambda: call(many))
    return _row([(b - a) / (many - few) * 1e6 for a, b in zip(short, long, strict=True)])


# --- launches ------------------------------------------------------------------------------------------------------------


def _launch_on_host(device: torch.device, dry: bool) -> Row:
    out = torch.zeros(1, device=device)
    return _on_host(lambda: kernels.empty_kernel[(1,)](out), device, dry)


def _torch_on_host(device: torch.device, dry: bool) -> Row:
    out = torch.zeros(1, device=device)
    return _on_host(lambda: out.add_(1), device, dry)


def _on_host(call: Callable[[], object], device: torch.device, dry: bool) -> Row:
    """What the host pays to queue a call: many are queued before it waits, but fewer than the queue holds."""
    calls, values = 2 if dry else 200, []
    call()
    for _ in range(3 if dry else 30):
        timing.wait(device)
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        values.append((time.perf_counter() - begin) / calls * 1e6)
    return _row(torch.tensor(values).quantile(torch.tensor(_QUANTILES)).tolist())


def _graph_node(device: torch.device, dry: bool) -> Row:
    if dry:
        return {"unsupported": "CUDA graphs need a GPU"}
    out = torch.zeros(1, device=device)

    def launches(n: int) -> Callable[[], object]:
        return timing.captured(lambda: [kernels.empty_kernel[(1,)](out) for _ in range(n)])

    replays = {n: launches(n) for n in _NODES}
    return _slope(_device_seconds, lambda n: replays[n](), *_NODES)


# --- among programs ------------------------------------------------------------------------------------------------------


def _together(device: torch.device, programs: int, dry: bool) -> dict[str, Any]:
    """Launch options for programs that wait for each other."""
    processors = 1 if dry else torch.cuda.get_device_properties(device).multi_processor_count
    if programs > processors:
        raise ValueError(f"{programs} programs cannot all be resident on {processors} processors")
    return {} if dry else {"launch_cooperative_grid": True}


def _barrier(device: torch.device, seconds: Seconds, dry: bool, programs: int, warps: int) -> Row:
    arrived = torch.zeros(1, dtype=torch.int32, device=device)
    options = _together(device, programs, dry)

    def call(rounds: int) -> None:
        arrived.zero_()
        kernels.barrier_kernel[(programs,)](arrived, rounds, CAN_TRAP=not dry, num_warps=warps, **options)

    return _slope(seconds, call, *((1, 3) if dry else (100, 1100)))


def _exchange(device: torch.device, seconds: Seconds, dry: bool, programs: int, own: int) -> Row:
    data = torch.zeros(2, programs * own, dtype=torch.float32 if dry else torch.bfloat16, device=device)
    arrived = torch.zeros(1, dtype=torch.int32, device=device)
    out = torch.empty(programs, device=device)
    everything = 1 << (programs * own - 1).bit_length()
    options = _together(device, programs, dry)

    def call(rounds: int) -> None:
        arrived.zero_()
        kernels.exchange_kernel[(programs,)](
            data, arrived, out, rounds, OWN=own, ALL=everything, CAN_TRAP=not dry, num_warps=8, **options
        )

    row = _slope(seconds, call, *((1, 3) if dry else (100, 1100)))
    # Round r is read after r was added up to r - 1 by everybody: a stale read shows in the sum.
    rounds = 3 if dry else 101
    call(rounds)
    expected = programs * own * rounds * (rounds - 1) / 2
    return {**row, "sums_are_right": bool(torch.allclose(out, torch.full_like(out, expected), rtol=1e-4))}


def _cache(device: torch.device, seconds: Seconds, dry: bool, size: int) -> Row:
    block = 256 if dry else 4096
    data, programs = torch.zeros(size // 4, device=device), 1 if dry else 132
    out = torch.empty(programs, device=device)

    def call(rounds: int) -> None:
        kernels.cache_read_kernel[(programs,)](data, out, data.numel(), rounds, BLOCK=block, num_warps=8)

    per_round = _slope(seconds, call, *((1, 3) if dry else (200, 2200)))
    return _row([programs * block * 4 / max(us, 1e-9) * 1e-6 for us in per_round.values()])


def _step(device: torch.device, dry: bool, H: int, B: int) -> Row:
    """The stepwise schedule's chain: each product needs the pointwise result before it."""
    if dry:
        return {"unsupported": "CUDA graphs need a GPU"}
    weights = torch.randn(H, 4 * H, device=device).bfloat16() / H**0.5
    h = torch.randn(B, H, device=device).bfloat16()
    gates = torch.empty(B, 4 * H, device=device, dtype=torch.bfloat16)

    def chain(n: int) -> None:
        for _ in range(n):
            torch.mm(h, weights, out=gates)
            torch.tanh(gates[:, :H], out=h)

    chain(1)
    replays = {n: timing.captured(functools.partial(chain, n)) for n in (32, 160)}
    slope = _slope(_device_seconds, lambda n: replays[n](), 32, 160)
    return {"mechanism": "library_step", "numbers": [H, B], **slope}


# --- ceilings ------------------------------------------------------------------------------------------------------------


def _copy(device: torch.device, seconds: Seconds, dry: bool) -> Row:
    n = 1 << (12 if dry else 30)
    source = torch.empty(n, device=device).normal_()
    target = torch.empty_like(source)
    return _row([2 * 4 * n / value * 1e-12 for value in seconds(lambda: target.copy_(source))])


def _product(device: torch.device, seconds: Seconds, dry: bool, precision: str) -> Row:
    n = 16 if dry else 8192
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))  # zeros would be faster
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    switch.fp32_precision = precision if precision in ("tf32", "ieee") else before
    try:
        with switched(precision):
            return _row([2 * n**3 / value * 1e-12 for value in seconds(lambda: a @ b)])
    finally:
        switch.fp32_precision = before
