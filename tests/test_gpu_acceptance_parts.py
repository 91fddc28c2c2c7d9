"""The parts of the GPU acceptance: what they do on a GPU, shown with stand-ins for it, and what they do without."""

import contextlib
import functools
import itertools
import os
import re
import sys
import time
import types

import pytest
import torch
from subprocesses import output_of

pytest.importorskip("triton", reason="the acceptance needs Triton")

from benchmarks.cases import Case
from benchmarks.gpu_acceptance import (
    build,
    mechanisms,
    peers,
    problems,
    profiles,
    repeatability,
    report,
    schedules,
    speed,
    timing,
    tuning,
)
from benchmarks.gpu_acceptance.schedules import Choice, Cuda, Gpu
from benchmarks.gpu_acceptance.stage import Stage, read_json
from rnnkernels.backends.triton.plan import Device

CASE = Case("lstm", "training", 4, 3, 5, 6)


@pytest.fixture
def stage(tmp_path):
    """A stage of a dry run with time on its hands."""
    return functools.partial(Stage, directory=tmp_path, device="cpu-interpreter", deadline=time.monotonic() + 600)


# --- on a GPU ------------------------------------------------------------------------------------------------------------


class PretendedGpu(Stage):
    """A stage that takes the ways of a GPU with tensors in the computer's memory."""

    dry = False
    torch_device = torch.device("cpu")


@pytest.fixture
def gpu_stage(tmp_path, monkeypatch, interpreter, native_library):
    """Makes stages of a pretended GPU: its clock is the host's, replaying a graph does nothing, and the CPU's kernels compute in
    the place of CUDA's."""

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            self.at = time.perf_counter()

        def elapsed_time(self, end):
            return (end.at - self.at) * 1e3

    functions = {
        "Event": Event,
        "CUDAGraph": lambda: types.SimpleNamespace(replay=lambda: None),
        "graph": contextlib.nullcontext,
        "stream": contextlib.nullcontext,
        "Stream": lambda: types.SimpleNamespace(wait_stream=lambda other: None),
        "current_stream": lambda: types.SimpleNamespace(wait_stream=lambda other: None),
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "memory_allocated": lambda: 1000,
        "max_memory_allocated": lambda: 5000,
    }
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        functions[name] = lambda: None
    for name, function in functions.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr("triton.testing.do_bench", lambda call, **options: (call() and None) or [2.0, 1.0, 3.0])
    schedules.pretend_gpu()
    return functools.partial(PretendedGpu, directory=tmp_path, device="cuda", deadline=time.monotonic() + 600)


def test_on_a_gpu_kernel_times_and_peak_memory_are_measured(gpu_stage, monkeypatch):
    case = Case("lstm", "training", 2, 2, 8, 8)
    monkeypatch.setattr(speed, "cases", lambda dry: [("tf32", case)])
    monkeypatch.setattr(schedules, "BACKENDS", ("cuda",))
    stage = gpu_stage("speed")
    stage.run(speed.run)
    (row,) = stage.content["rows"]
    assert {"torch.nn", "products", "cuda one CTA", "cuda cluster", "cuda plan"} <= set(row["results"])
    assert "cuda stepwise" not in row["results"]  # another fits, and the layer is small
    planned = {choice["schedule"] for choice in row["plan"]["cuda"].values()}
    assert {row["results"]["cuda plan"]["same_as"]} == {f"cuda {schedule}" for schedule in planned}
    products = row["results"].pop("products")["us_per_step"]
    for entry in row["results"].values():
        assert entry["peak_memory_bytes"] == 4000
        assert entry["us_per_step"] == pytest.approx(entry["kernel"]["median_s"] / 2 * 1e6)
        assert entry["us_per_step_alone"] == pytest.approx(entry["us_per_step"] - products)
    assert "us per step" in report.render(stage.directory)


def test_on_a_gpu_a_call_that_cannot_be_captured_is_timed_as_it_is(gpu_stage, monkeypatch):
    def captured(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(timing, "captured", captured)
    monkeypatch.setattr(speed, "cases", lambda dry: [("tf32", Case("gru", "inference", 2, 2, 8, 8, packed=True))])
    monkeypatch.setattr(schedules, "BACKENDS", ("cuda",))
    stage = gpu_stage("speed")
    stage.run(speed.run)
    entry = stage.content["rows"][0]["results"]["cuda cluster"]
    assert "not permitted" in entry["kernel_note"]
    assert entry["kernel"]["median_s"] > 0


def test_on_a_gpu_a_graph_that_does_not_compute_again_is_found_out(gpu_stage, monkeypatch):
    case = Case("gru", "training", 2, 2, 8, 8)
    monkeypatch.setattr(repeatability, "rows", lambda gpu, dry: [("tf32", case, Choice("cuda", Cuda("stepwise")))])
    stage = gpu_stage("repeatability")
    stage.run(repeatability.run)
    again, graph = stage.content["rows"]
    assert again["bitwise"] and again["differing"] == []
    assert not graph["bitwise"] and "output" in graph["differing"]
    assert "output" in report.render(stage.directory)


def test_on_a_gpu_every_tiling_is_timed_and_the_fastest_wins(gpu_stage, monkeypatch):
    case = Case("gru", "training", 2, 2, 8, 8)
    stage = gpu_stage("tuning")
    monkeypatch.setattr(tuning, "workloads", lambda dry: [("tf32", case, False), ("tf32", case, True)])
    monkeypatch.setattr(tuning, "BACKENDS", ("triton",))
    n_tilings = len(schedules.candidates(case, "tf32", schedules.gpu(torch.empty(1)), True, "triton"))
    times = itertools.cycle([3.0, 1.0, *[4.0] * (n_tilings - 2)])
    monkeypatch.setattr("triton.testing.do_bench", lambda call, **options: [next(times)] * 3)
    stage.run(tuning.run)
    for row in stage.content["rows"]:
        assert row["gain_over_plan"] == pytest.approx(3)
        assert len(row["times"]) == n_tilings
        assert str(Choice.of(row["fastest"])) == row["times"][1]["name"]


def test_on_a_gpu_tilings_that_are_estimated_to_be_far_behind_are_named_and_not_timed(gpu_stage, monkeypatch):
    monkeypatch.setattr(tuning, "workloads", lambda dry: [("bfloat16", Case("lstm", "training", 2, 2, 8, 8, "bfloat16"), False)])
    monkeypatch.setattr(tuning, "BACKENDS", ("cuda",))
    stage = gpu_stage("tuning")
    stage.run(tuning.run)
    (row,) = stage.content["rows"]
    timed = {entry["name"]: entry["estimated_us_per_step"] for entry in row["times"]}
    assert row["plan"] in timed
    assert "cuda stepwise" in row["left_out"]
    assert not set(timed) & set(row["left_out"])
    assert max(timed.values()) <= tuning.FAR * min(timed.values())


def test_on_a_gpu_what_repeats_in_a_graph_is_a_slope(gpu_stage, monkeypatch):
    monkeypatch.setattr(mechanisms, "_NODES", (1, 3))
    cpu = torch.device("cpu")
    for row in (mechanisms._graph_node(cpu, False), mechanisms._step(cpu, False, 8, 2)):
        assert row["median"] == 0  # twice the same time, whatever the number of nodes
    values = {100: [1e-3, 1e-3, 1e-3], 1100: [3e-3, 2e-3, 4e-3]}
    row = mechanisms._slope(lambda call: values[call()], lambda rounds: rounds, 100, 1100)
    assert row == pytest.approx({"median": 2, "p20": 1, "p80": 3})


# --- measuring -----------------------------------------------------------------------------------------------------------


def test_kernel_times_come_from_the_devices_clock_around_each_call(monkeypatch):
    now = [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = now[0]

        def elapsed_time(self, end):
            return end.at - self.at

    def takes(milliseconds):
        def call():
            now[0] += milliseconds

        return call

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    times = timing.event_times({"torch.nn": takes(6), "ours": takes(2)}, "torch.nn", seconds=0, min_rounds=3)
    assert times["ours"]["median_s"] == pytest.approx(2e-3)
    assert times["ours"]["speedup"] == pytest.approx(3)
    assert times["ours"]["rounds"] == 3


def test_a_call_is_captured_after_a_first_run_on_the_side_without_garbage_collection(monkeypatch):
    import gc

    log = []

    class Stream:
        def wait_stream(self, other):
            log.append("wait")

    class Graph:
        def replay(self):
            log.append("replay")

    @contextlib.contextmanager
    def graph(own):
        assert not gc.isenabled()
        log.append("capture")
        yield

    for name, value in {"Stream": Stream, "CUDAGraph": Graph, "graph": graph, "current_stream": Stream}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)

    def call():
        log.append("call")
        return "result"

    replay = timing.captured(call)
    assert (replay(), gc.isenabled()) == ("result", True)
    assert log == ["wait", "call", "wait", "capture", "call", "replay"]


@pytest.mark.parametrize(
    ("case", "forward", "backward"),
    [
        (Case("lstm", "training", 9, 16, 512, 512, dtype="float16"), "PERSIST_STATIC", "PERSIST_STATIC"),
        (Case("lstm", "training", 9, 16, 512, 512, dtype="bfloat16"), "STANDARD", "STANDARD"),
        (Case("gru", "training", 9, 16, 512, 512, dtype="float16"), "STANDARD", "STANDARD"),
        (Case("lstm", "training", 9, 12, 512, 512, dtype="float16"), "STANDARD", "STANDARD"),
        (Case("gru", "training", 9, 16, 192, 192), "PERSIST_STATIC_SMALL_H", "STANDARD"),
        (Case("gru", "training", 9, 16, 128, 128), "PERSIST_STATIC_SMALL_H", "PERSIST_STATIC_SMALL_H"),
        (Case("lstm", "training", 9, 16, 128, 128, packed=True), "STANDARD", "STANDARD"),
    ],
    ids=str,
)
def test_cudnns_algorithm_is_named_by_the_rule_torch_follows(case, forward, backward):
    assert (speed.cudnn_algorithm(case, False), speed.cudnn_algorithm(case, True)) == (forward, backward)


def test_the_first_cases_timed_span_the_sizes():
    first = [case for _, case in speed.cases(dry=False)][: 12 * 5]
    assert {64, 128, 256, 512, 1024} == {case.H for case in first}
    assert {1, 16, 64, 256} == {case.B for case in first}
    assert {"bfloat16", "float16", "float32"} == {case.dtype for case in first}
    assert set(speed.SHAPES) == {(H, B) for H in (64, 128, 256, 512, 768, 1024) for B in (1, 16, 64, 256)}


def test_a_contestant_that_computes_something_else_is_not_timed(stage):
    calls = {"torch.nn": lambda: (torch.ones(4),), "wrong": lambda: (torch.zeros(4),)}
    calls["out of memory"] = functools.partial(_raise, torch.OutOfMemoryError("no memory left"))
    results = {name: {} for name in calls}
    assert speed._admit(stage("speed"), calls, results) is None
    assert list(calls) == ["torch.nn"]
    assert "differ from torch.nn's by 1" in results["wrong"]["error"]
    assert "no memory left" in results["out of memory"]["error"]


def test_a_schedule_that_breaks_the_context_is_named_and_nothing_more_is_called(stage):
    running = stage("speed")
    running.fault = lambda: "an illegal memory access"
    calls = {"torch.nn": lambda: (torch.ones(4),), "grid": functools.partial(_raise, RuntimeError("trap"))}
    calls["plan"] = functools.partial(_raise, AssertionError("called"))
    results = {name: {} for name in calls}
    assert speed._admit(running, calls, results) == "grid"
    assert results["grid"]["error"] == "trap"


def _raise(error):
    raise error


def test_an_unwritten_result_is_infinitely_wrong_and_its_place_is_named():
    budget = problems.Budget(problems.draw(CASE), torch.device("cpu"))
    results = {name: value.float() for name, value in budget.exact.items()}
    assert budget.check(results)["within_budget"]
    results["output"][2, 1, 3] = float("nan")
    verdict = budget.check(results)
    assert not verdict["within_budget"]
    assert (verdict["worst"]["result"], verdict["worst"]["at"]) == ("output", [2, 1, 3])
    assert not verdict["worst"]["all_finite"]


def test_new_memory_is_poisoned_and_only_there():
    with problems.poisoned(torch.device("cpu")):
        assert torch.empty(3, dtype=torch.bfloat16).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_renumbered_units_give_the_same_results_but_for_rounding(cell):
    problem = problems.draw(Case(cell, "training", 4, 3, 5, 6, dtype="float64", packed=True, bidirectional=True))
    plain, renumbered = (problems.evaluate(problem, "aten", torch.device("cpu"), torch.float64, run) for run in (0, 1))
    assert all(torch.allclose(plain[name], renumbered[name], rtol=1e-9, atol=1e-12) for name in plain)


def test_tilings_fit_both_ways_through_time_of_a_training_step():
    gpu = Gpu(Device(132, 227 * 1024), cuda=None)
    case = Case("lstm", "training", 9, 64, 1024, 1024, dtype="bfloat16")
    assert {"triton grid", "triton stepwise"} == set(schedules.best_of_each(schedules.fitting(case, "bfloat16", gpu)))
    small = Case("gru", "training", 9, 64, 64, 64)
    expected = {"triton program", "triton grid", "triton stepwise"}
    assert expected == set(schedules.best_of_each(schedules.fitting(small, "ieee", gpu)))


def test_a_choice_survives_a_file():
    for choice in (schedules.TRITON_STEPWISE, Choice("cuda", Cuda("cluster", "deep", 8)), Choice("cuda", Cuda("one CTA"))):
        assert Choice.of(choice.as_dict()) == choice


def test_tools_are_run_on_the_worst_ratios(stage, tmp_path, monkeypatch):
    def row(H, ratio):
        case = Case("gru", "inference", 512, 2, H, H).as_dict()
        results = {"torch.nn": {}, "triton plan": {"wall": {"speedup": 0.1}, "kernel": {"speedup": ratio}}}
        return {"key": f"H={H}", "case": case, "precision": "tf32", "results": results}

    monkeypatch.setattr(schedules, "BACKENDS", ("cuda",))  # for the sanitizer's layers: the interpreter takes its time
    tool = tmp_path / "ncu"
    tool.write_text('#!/bin/sh\necho "==PROF== hello"\necho \'"ID","Kernel Name"\'\necho "$@" >> "$0.log"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    measured = stage("speed")
    for H, ratio in ((8, 2.0), (9, 0.5), (10, 0.7), (11, 0.6)):
        measured._add(row(H, ratio))
    profiling = stage("profiles")
    assert [case.H for _, (_, case, _) in profiles.worst(profiling.other("speed"), profiling)] == [9, 11, 10]
    profiling.run(profiles.run)
    assert [row.get("table") for row in profiling.content["rows"]][1:] == [['"ID","Kernel Name"']] * 3
    assert "--clock-control none" in (tmp_path / "ncu.log").read_text()


def test_a_tool_that_takes_too_long_is_stopped_and_its_output_kept(stage, monkeypatch):
    monkeypatch.setattr(profiles, "_PATIENCE", 1)
    code, output = profiles._call(["sh", "-c", "echo begun; sleep 60"], stage("profiles"))
    assert code == 124
    assert "begun" in output and "stopped after 1 s" in output


def test_the_profiler_is_shown_the_cuda_kernels_where_they_were_timed(stage, native_library):
    schedules.pretend_gpu()
    case = Case("gru", "inference", 512, 2, 64, 64, "bfloat16").as_dict()
    ratios = {"cuda plan": {"kernel": {"speedup": 2.0}}, "triton plan": {"kernel": {"speedup": 0.5}}}
    running = stage("speed")
    running._add({"key": "a", "case": case, "precision": "bfloat16", "results": {"torch.nn": {}, **ratios}})
    ((rank, (_, _, choice)),) = profiles.worst(running.content, running)
    assert (rank, choice.backend) == (1, "cuda")


@pytest.mark.parametrize(
    ("kernel", "shown"),
    [("forward_kernel", True), ("step_backward_kernel", True), ("grid_forward_kernel", True), ("pack_forward_kernel", False)],
)
def test_the_profiler_leaves_out_what_only_arranges_weights(kernel, shown):
    assert bool(re.search(profiles._KERNELS.removeprefix("regex:"), kernel)) == shown


# --- building ------------------------------------------------------------------------------------------------------------


def on_path(directory, monkeypatch, **scripts):
    for name, script in scripts.items():
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def pretended_build(tmp_path, monkeypatch):
    """The build of a pretended GPU of compute capability 9.0, into a directory of the test's."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(build, "PROGRAM", tmp_path / "built" / "mechanisms")
    monkeypatch.setattr(build, "_ROOT", tmp_path)
    (tmp_path / "setup.py").write_text(
        "import os, pathlib\n"
        "assert os.environ['RNNKERNELS_BUILD_CUDA'] == '1'\n"
        "lib = pathlib.Path('rnnkernels/lib')\n"
        "lib.mkdir(parents=True)\n"
        '(lib / "build_report.json").write_text(\'{"cuda": {"status": "built", "architectures": "9.0a"}}\')\n'
    )
    monkeypatch.setattr(build, "_LIBRARY", tmp_path / "rnnkernels" / "lib")
    return functools.partial(PretendedGpu, directory=tmp_path, device="cuda", deadline=time.monotonic() + 600)


def test_the_kernels_and_the_program_of_mechanisms_are_built_for_the_gpu_that_is_here(pretended_build, tmp_path, monkeypatch):
    on_path(tmp_path, monkeypatch, nvcc='echo "$@" > "$0.log"; for last; do :; done; touch "$last"')
    stage = pretended_build("build")
    stage.run(build.run)
    library, program = stage.content["rows"]
    assert (library["built"], library["cuda"]["architectures"]) == ("now", "9.0a")
    assert program["built"] == "now" and build.PROGRAM.exists()
    assert "arch=compute_90a,code=sm_90a" in (tmp_path / "nvcc.log").read_text()
    assert "for 9.0a" in report.render(stage.directory)


def test_a_build_that_fails_says_why_and_one_that_was_made_before_is_taken_when_asked_for(pretended_build, tmp_path, monkeypatch):
    on_path(tmp_path, monkeypatch, nvcc="echo no such architecture; exit 1")
    (tmp_path / "setup.py").write_text("raise SystemExit('no compiler')")
    stage = pretended_build("build")
    stage.run(build.run)
    library, program = stage.content["rows"]
    assert "no compiler" in library["error"] and "no such architecture" in program["error"]
    again = pretended_build("again", built=True)
    again.run(build.run)
    library, program = again.content["rows"]
    assert library["built"] == "before"
    assert program["unsupported"] == "it was not built before"


def test_mechanisms_are_measured_by_the_program_that_was_built(gpu_stage, tmp_path, monkeypatch):
    on_path(tmp_path, monkeypatch, program='test $1 = broken && { echo trap >&2; exit 1; }; echo "{\\"median\\": $2}"')
    monkeypatch.setattr(build, "PROGRAM", tmp_path / "program")
    stage = gpu_stage("mechanisms")
    assert mechanisms._program(stage, "remote_load", (3,)) == {"mechanism": "remote_load", "numbers": [3], "median": 3}
    assert mechanisms._program(stage, "broken", ())["error"] == "trap"
    monkeypatch.setattr(build, "PROGRAM", tmp_path / "nothing")
    assert mechanisms._program(stage, "remote_load", (3,))["unsupported"] == "the program was not built"


def test_the_program_knows_the_mechanisms_it_is_asked_for():
    source = (build._ROOT / "csrc" / "cuda" / "mechanisms.cu").read_text()
    known = {name: int(count) for name, count in re.findall(r'^    \{"(\w+)", \{.*, (\d)\}\},$', source, re.MULTILINE)}
    assert {name: len(numbers) for name, numbers, _ in mechanisms.PROGRAM} == known
    keys = [what for _, _, what in mechanisms.PROGRAM]
    assert len(set(keys)) == len(keys)


# --- peers ---------------------------------------------------------------------------------------------------------------


def test_torchrl_is_asked_for_its_triton_backend(monkeypatch):
    asked = {}

    class Module(torch.nn.LSTM):
        def __init__(self, input_size, hidden_size, in_keys, out_keys, recurrent_backend, **options):
            super().__init__(input_size, hidden_size, batch_first=True)
            asked.update(options, backend=recurrent_backend)

        def forward(self, data):
            return {"y": super().forward(data["x"])[0]}

    fakes = {"tensordict": {"TensorDict": lambda data, size: data}, "torchrl.modules": {"LSTMModule": Module, "GRUModule": None}}
    _install(monkeypatch, {"torchrl": {}, **fakes})
    step = peers._torchrl(CASE, torch.device("cpu"))
    grads = step(torch.randn(4, 3, 5), torch.randn(4, 3, 6))
    assert (asked["backend"], len(grads)) == ("triton", 5)


def test_flashrnn_is_given_the_projected_input(monkeypatch):
    def flashrnn(projected, w_hh, bias, function, backend, dtype):
        assert (function, backend, dtype) == ("lstm", "triton_fused", "float32")
        hidden = (projected + bias)[:, :, 0] @ w_hh[0, 0]
        return torch.stack([hidden, hidden]), None

    _install(monkeypatch, {"flashrnn": {"flashrnn": flashrnn}})
    grads = peers._flashrnn(CASE, torch.device("cpu"))(torch.randn(4, 3, 5), torch.randn(4, 3, 6))
    assert [grad.shape for grad in grads][:2] == [(4, 3, 5), (24, 5)]
    with pytest.raises(NotImplementedError, match="no Triton kernel for the GRU"):
        peers._flashrnn(Case("gru", "training", 4, 3, 5, 6), torch.device("cpu"))


def _install(monkeypatch, modules):
    for name, attributes in modules.items():
        module = types.ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)


def test_kernels_are_compiled_ahead_without_a_gpu(tmp_path):
    code = """
import os, time
from pathlib import Path
from benchmarks.cases import Case
from benchmarks.gpu_acceptance import compiling
from benchmarks.gpu_acceptance import mechanism_kernels as kernels
from benchmarks.gpu_acceptance.stage import Stage
from rnnkernels.backends.triton.plan import Device, Tiling
import torch

def jobs(device):
    assert device.processors == 132
    return [compiling.Job("bfloat16", Case("gru", "inference", 9, 4, 16, 16, dtype="bfloat16"), tiling) for tiling in
            (Tiling("program", 16, 16, 16, 1, 4), Tiling("no such schedule", 3, 3, 3, 1, 4))]

if __name__ == "__main__":
    directory = Path(os.environ["DIRECTORY"])
    hardware = {"key": "hardware", "major": 9, "minor": 0, "plan": {"processors": 132, "shared_memory": 232448}}
    machine = Stage("machine", directory, "cpu-interpreter", 0)
    machine._add(hardware)
    compiling.jobs = jobs
    stage = Stage("compiling", directory, "cuda", time.monotonic() + 300)
    stage.run(compiling.run)
    # What the stage mechanisms launches is compiled when it is; here, to see that it can be.
    compiling._begin(compiling.Target(90, Device(132, 232448)), os.getpid())
    numbers, counter = (torch.empty(1 << 15, dtype=dtype, device="meta") for dtype in (torch.float32, torch.int32))
    together = {"num_warps": 8, "launch_cooperative_grid": True, "grid": (64,), "CAN_TRAP": True}
    kernels.empty_kernel.warmup(numbers, grid=(1,))
    kernels.barrier_kernel.warmup(counter, 100, **together)
    kernels.exchange_kernel.warmup(numbers.bfloat16(), counter, numbers, 100, OWN=256, ALL=1 << 14, **together)
    kernels.cache_read_kernel.warmup(numbers, numbers, 1 << 15, 100, BLOCK=4096, num_warps=8, grid=(132,))
"""
    script = tmp_path / "compile_ahead.py"
    script.write_text(code)
    cache = tmp_path / "cache"
    variables = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache), "DIRECTORY": str(tmp_path)}
    output_of(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')", **variables)
    content = read_json(tmp_path / "compiling.json")
    assert content["status"] == "complete", content["reason"]
    compiled, refused = sorted(content["rows"], key=lambda row: "error" in row)
    assert [kernel["kernel"] for kernel in compiled["kernels"]] == ["forward_kernel"]
    assert "barrier_kernel" in {file.stem for file in cache.rglob("*.cubin")}
    assert refused["error"]
    assert list(cache.rglob("*.cubin"))
