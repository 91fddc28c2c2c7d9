"""The latency of one streaming step: ``python -m benchmarks.streaming``.

A batch of one, states carried from step to step, no gradients. Next to :class:`rnnkernels.streaming.Stream` are timed one-step
calls of torch.nn's module and of this package's, and ONNX Runtime where it and ``onnx`` can be imported: as a whole
``session.run``, and at its best, with inputs, outputs and states bound to memory beforehand. Outputs are checked first. All
contestants take turns in one process; speed-ups are medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

import rnnkernels
from rnnkernels import info

from . import machine, report
from .arguments import at_least
from .gate import FLOOR_ULP
from .providers import onnx_runtime

#: Grows when a key of the result file changes its meaning or goes away.
SCHEMA = 1
SIZES = (16, 32, 64, 128, 256, 512, 1024)
ROUND_S = 2e-3  # how long a contestant is timed within a round
OURS = "stream"

#: One step: x (1, I) -> output (1, H).
Step = Callable[[Tensor], Tensor]


def contestants(module: nn.RNNBase) -> dict[str, Step]:
    """Each contestant's step, beginning from zero states, with the weights of ``module``, one of torch.nn's."""
    ours = getattr(rnnkernels, module.mode)(module.input_size, module.hidden_size, module.num_layers)
    ours.load_state_dict(module.state_dict())
    stream, narrow = ours.stream(), ours.stream(dtype=torch.bfloat16)
    steps: dict[str, Step] = {
        "torch.nn": _module_step(module),
        "rnnkernels module": _module_step(ours),
        OURS: stream.step,
        "stream, bfloat16 weights": narrow.step,
    }
    if onnx_runtime.missing() is None:
        steps["ONNX Runtime"], steps["ONNX Runtime, bound"] = _onnx_steps(module)
    return steps


def _module_step(module: nn.RNNBase) -> Step:
    state = None

    def step(x: Tensor) -> Tensor:
        nonlocal state
        output, state = module(x, state)  # unbatched: one step (1, I)
        return output

    return step


def _onnx_steps(module: nn.RNNBase) -> tuple[Step, Step]:
    graph = onnx_runtime.model(module.mode.lower(), module.state_dict(), module.num_layers, states=True)
    session = onnx_runtime.session(graph)
    names = [output.name for output in session.get_outputs()]
    zeros = numpy.zeros((1, 1, module.hidden_size), numpy.float32)
    feed = {f"in{i}": zeros for i in range(len(names) - 1)}

    def run(x: Tensor) -> Tensor:
        feed["x"] = x.numpy()[None]
        output, *states = session.run(names, feed)
        for i, state in enumerate(states):
            feed[f"in{i}"] = state
        return torch.from_numpy(output).view(1, -1)

    return run, onnx_runtime.bound_step(graph, batch=1)


# --- checking ------------------------------------------------------------------------------------------------------------


def mismatches(module: nn.RNNBase, steps: dict[str, Step], inputs: Sequence[Tensor]) -> list[str]:
    """Feed all contestants the same steps from zero states -> which are further from a float64 torch.nn than :mod:`.gate` allows.

    With bfloat16 weights the exact result is that of the rounded weights.
    """
    exact = {False: _oracle(module, rounded=False), True: _oracle(module, rounded=True)}
    plain = _module_step(module)
    worst, theirs, scale = dict.fromkeys(steps, 0.0), 0.0, 0.0
    for x in inputs:
        expected = {rounded: step(x.double()) for rounded, step in exact.items()}
        scale = max(scale, expected[False].abs().max().item())
        theirs = max(theirs, (plain(x) - expected[False]).abs().max().item())
        for name, step in steps.items():
            difference = step(x).double() - expected["bfloat16" in name]
            # A NaN would lose every comparison of max(): count it as infinitely wrong.
            worst[name] = max(worst[name], difference.abs().nan_to_num(nan=torch.inf).max().item())
    allowed = 2 * theirs + FLOOR_ULP[torch.float32] * torch.finfo(torch.float32).eps * scale
    return [f"{name}: off by {error:.2e}, allowed {allowed:.2e}" for name, error in worst.items() if not error <= allowed]


def _oracle(module: nn.RNNBase, rounded: bool) -> Step:
    weights = {
        name: (value.bfloat16() if rounded and value.dim() == 2 else value).double()
        for name, value in module.state_dict().items()
    }
    exact = type(module)(module.input_size, module.hidden_size, module.num_layers, dtype=torch.float64)
    exact.load_state_dict(weights)
    return _module_step(exact)


# --- timing --------------------------------------------------------------------------------------------------------------


def measure(steps: dict[str, Step], x: Tensor, seconds: float, seed: int) -> dict[str, dict[str, float]]:
    """Microseconds per step of every contestant, and how many times faster the stream is."""
    calls = {}
    for name, step in steps.items():
        _seconds(step, x, 5)
        calls[name] = max(1, round(ROUND_S / _seconds(step, x, 5)))
    rounds: dict[str, list[float]] = {name: [] for name in steps}
    singles: dict[str, list[float]] = {name: [] for name in steps}
    order, shuffle = list(steps), random.Random(seed).shuffle
    deadline = time.monotonic() + seconds * len(steps)
    while time.monotonic() < deadline or len(rounds[OURS]) < 5:
        shuffle(order)
        for name in order:
            rounds[name].append(_seconds(steps[name], x, calls[name]))
            singles[name] += (_seconds(steps[name], x, 1) for _ in range(min(calls[name], 200)))
    return {
        name: {
            "median_us": 1e6 * statistics.median(own),
            "min_us": 1e6 * min(own),
            "p50_us": 1e6 * statistics.median(singles[name]),  # of single calls: the clock's own time is in it
            "p99_us": 1e6 * statistics.quantiles(singles[name], n=100)[-1],
            "stream_is_faster_by": statistics.median([o / s for o, s in zip(own, rounds[OURS], strict=True)]),
            "rounds": len(own),
        }
        for name, own in rounds.items()
    }


def _seconds(step: Step, x: Tensor, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        step(x)
    return (time.perf_counter() - start) / calls


# --- the command -----------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="result file (default: out/<machine>-streaming.json)")
    parser.add_argument(
        "--sizes", type=at_least(1), nargs="+", default=SIZES, metavar="H", help="hidden and input sizes (default: 16 … 1024)"
    )
    parser.add_argument("--layers", type=at_least(1), nargs="+", default=(1, 2), help="(default: 1 2)")
    parser.add_argument("--seconds", type=float, default=1.0, help="per case and contestant (default: %(default)s)")
    parser.add_argument("--threads", type=at_least(1), default=1, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if (reason := onnx_runtime.missing()) is not None:
        print(f"without ONNX Runtime: {reason}", file=sys.stderr)
    result = {
        "schema": SCHEMA,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": machine.commit(),
        "machine": machine.describe(),
        "versions": info.collect()["versions"] | {"onnxruntime": onnx_runtime.version()},
        "settings": {"seconds": options.seconds, "threads": options.threads, "seed": options.seed},
        "load_average_before": machine.load_average(),
        "cases": [],
    }
    wrong = 0
    with torch.no_grad():
        for cell in ("LSTM", "GRU"):
            for layers in options.layers:
                for size in options.sizes:
                    torch.manual_seed(options.seed)
                    module = getattr(nn, cell)(size, size, layers).eval()
                    steps, inputs = contestants(module), torch.randn(8, 1, size)
                    refused = mismatches(module, steps, inputs)
                    wrong += len(refused)
                    case = {"cell": cell, "H": size, "I": size, "num_layers": layers, "refused": refused}
                    case["results"] = {} if refused else measure(steps, inputs[0], options.seconds, options.seed)
                    result["cases"].append(case)
                    print(_line(case), flush=True)
    result["load_average_after"] = machine.load_average()
    out = options.out or report.ROOT / "out" / f"{machine.slug(result['machine']['name'])}-streaming.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written to {out}")
    return 1 if wrong else 0


def _line(case: dict[str, Any]) -> str:
    name = f"{case['cell']} H {case['H']}, {case['num_layers']} layer{'s' * (case['num_layers'] > 1)}:"
    if case["refused"]:
        return f"{name} refused: {'; '.join(case['refused'])}"
    times = (f"{who} {r['median_us']:.2f} us (stream {r['stream_is_faster_by']:.2f}x)" for who, r in case["results"].items())
    return f"{name} {', '.join(times)}"


if __name__ == "__main__":
    sys.exit(main())
