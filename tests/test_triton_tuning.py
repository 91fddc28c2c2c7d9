"""Measured tilings: taken once, kept on disk, used in place of the plan; and kernels warmed up before they are needed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton

import rnnkernels
from rnnkernels.backends.triton import sequence, tuning
from rnnkernels.backends.triton.plan import STEPWISE, Device, Tiling, Workload, candidates, plan

WORK = Workload("lstm", False, 16, 4, 1, 4, "ieee")
DEVICE = Device(processors=132, shared_memory=232448)
GPU = SimpleNamespace(is_cuda=True, device=SimpleNamespace(index=0))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A GPU with a name and an empty cache; -> the file of its measurements."""
    monkeypatch.setenv("RNNKERNELS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200 (a test's)")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(tuning, "_COMMITTED", tmp_path / "none")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    tuning._measured.cache_clear()
    yield tuning.cache_file("NVIDIA H200 (a test's)")
    tuning._measured.cache_clear()


def slower(monkeypatch: pytest.MonkeyPatch, tiling: Tiling) -> list[Tiling]:
    """Let a candidate take twice as long as the others; -> what gets timed."""
    timed = []

    def do_bench(run, **options) -> float:
        timed.append(tuning._wishes.tiling)
        return 2.0 if timed[-1] == tiling else 1.0

    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    return timed


# --- measuring -----------------------------------------------------------------------------------------------------------


def test_nothing_is_measured_unless_asked_for(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "tune", lambda *args: pytest.fail("measured"))
    assert tuning.tiling_for(WORK, DEVICE, GPU) == plan(WORK, DEVICE)
    assert not gpu.exists()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_fastest_candidate_is_kept_on_disk_and_used_from_then_on(
    interpreter: None, gpu: Path, monkeypatch: pytest.MonkeyPatch, cell: str, backward: bool
) -> None:
    monkeypatch.setattr(tuning, "TIMED_STEPS", 2)
    work = WORK._replace(cell=cell, backward=backward)
    timed = slower(monkeypatch, plan(work, sequence.INTERPRETER))
    found = tuning.tune(work, sequence.INTERPRETER, torch.empty(0))
    assert timed == candidates(work, sequence.INTERPRETER)
    assert found == STEPWISE
    assert tuning.read(gpu) == {tuning.key(work): STEPWISE}
    tuning._measured.cache_clear()  # as a later process
    assert tuning.tiling_for(work, sequence.INTERPRETER, GPU) == STEPWISE


def test_a_candidate_that_fails_is_left_out_with_a_warning(interpreter: None, gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "TIMED_STEPS", 2)
    slower(monkeypatch, STEPWISE)
    start = sequence.start

    def failing(kernel, *rest) -> None:
        if kernel.__name__ == "forward_kernel":
            raise RuntimeError("too many registers")
        start(kernel, *rest)

    monkeypatch.setattr(sequence, "start", failing)
    with pytest.warns(UserWarning, match="leaves out a tiling that failed .*too many registers"):
        assert tuning.tune(WORK, sequence.INTERPRETER, torch.empty(0)) == STEPWISE


def test_a_new_shape_is_measured_when_that_is_wished_but_never_during_capture(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "tune", lambda *args: STEPWISE)
    with tuning.autotuning(True):
        assert tuning.tiling_for(WORK, DEVICE, GPU) == STEPWISE
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert tuning.tiling_for(WORK, DEVICE, GPU) == plan(WORK, DEVICE)


def test_a_measurement_holds_for_a_class_of_sizes_and_nothing_else() -> None:
    same = WORK._replace(hidden_size=64, batch=3), WORK._replace(hidden_size=1)
    other = [
        WORK._replace(hidden_size=65),
        WORK._replace(batch=5),
        WORK._replace(cell="gru"),
        WORK._replace(backward=True),
        WORK._replace(element_size=2),
        WORK._replace(precision="tf32"),
        WORK._replace(directions=2),
    ]
    assert {tuning.key(work) for work in same} == {tuning.key(WORK)}
    assert len({tuning.key(work) for work in (WORK, *other)}) == 1 + len(other)


def test_a_measurement_that_does_not_fit_this_layer_is_not_used(gpu: Path) -> None:
    """One class holds several hidden sizes, and what fits the smallest may not fit the largest."""
    alone = plan(WORK, DEVICE)
    tuning.write(gpu, {tuning.key(WORK): alone})
    larger = WORK._replace(hidden_size=33)
    assert tuning.key(larger) == tuning.key(WORK)
    assert tuning.tiling_for(larger, DEVICE, GPU) == plan(larger, DEVICE) != alone


# --- the files -----------------------------------------------------------------------------------------------------------


def test_measurements_of_several_processes_are_kept_together(gpu: Path) -> None:
    tuning.write(gpu, {"a": STEPWISE})
    tuning.write(gpu, {"b": plan(WORK, DEVICE)})
    assert tuning.read(gpu) == {"a": STEPWISE, "b": plan(WORK, DEVICE)}
    assert [path.name for path in gpu.parent.iterdir()] == [gpu.name]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": {"speed": 1}}', "\udcff"])
def test_a_broken_file_is_ignored_with_a_warning(gpu: Path, content: str) -> None:
    gpu.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.warns(UserWarning, match="ignores the measurements in"):
        assert tuning.tiling_for(WORK, DEVICE, GPU) == plan(WORK, DEVICE)


def test_a_directory_that_cannot_be_written_to_loses_only_the_record(
    interpreter: None, gpu: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tuning, "TIMED_STEPS", 2)
    slower(monkeypatch, STEPWISE)
    (tmp_path / "file").touch()
    monkeypatch.setenv("RNNKERNELS_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.warns(UserWarning, match="cannot keep measurements"):
        assert tuning.tune(WORK, sequence.INTERPRETER, torch.empty(0)) == plan(WORK, sequence.INTERPRETER)


def test_the_file_is_named_after_the_gpu_and_tritons_version(gpu: Path) -> None:
    assert gpu.name == f"triton-{triton.__version__}-nvidia-h200-a-test-s.json"


# --- warming up ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_warming_up_runs_every_kernel_a_module_needs_and_leaves_it_as_it_was(
    interpreter: None, monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    model = torch.nn.Sequential(rnnkernels.LSTM(3, 4, num_layers=2, dropout=0.5), rnnkernels.GRU(4, 5, batch_first=True)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    launched = []
    start = sequence.start

    def recording(kernel, grid, arguments, options) -> None:
        launched.append((kernel.__name__, arguments["batch"], arguments["PACKED"]))
        start(kernel, grid, arguments, options)

    monkeypatch.setattr(sequence, "start", recording)
    random_state = torch.get_rng_state()
    rnnkernels.triton_warmup(model, [2, 3], training=training, packed=True)
    kernels = {"forward_kernel", "backward_kernel"} if training else {"forward_kernel"}
    assert set(launched) == {(kernel, batch, packed) for kernel in kernels for batch in (2, 3) for packed in (False, True)}
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("tune", [False, True])
def test_warming_up_measures_only_on_request(interpreter: None, monkeypatch: pytest.MonkeyPatch, tune: bool) -> None:
    wished = []
    chosen = tuning.tiling_for

    def recording(*args) -> Tiling:
        wished.append(tuning._wishes.autotune)
        return chosen(*args)

    monkeypatch.setattr(tuning, "tiling_for", recording)
    rnnkernels.triton_warmup(rnnkernels.GRU(2, 3), [1], tune=tune)
    assert set(wished) == {tune}
    assert not tuning._wishes.autotune


def test_warming_up_refuses_what_it_cannot_warm(interpreter: None) -> None:
    with pytest.raises(ValueError, match=r"found no rnnkernels\.LSTM"):
        rnnkernels.triton_warmup(torch.nn.LSTM(2, 3), [1])
    with pytest.raises(ValueError, match=r"batch sizes of at least 1, got \[0\]"):
        rnnkernels.triton_warmup(rnnkernels.GRU(2, 3), [0])
    with pytest.raises(ValueError, match="at least 1"):
        rnnkernels.triton_warmup(rnnkernels.GRU(2, 3), [])
