"""``python -m benchmarks.streaming`` times only what is right, and writes what it says. No figure is asserted."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from benchmarks import streaming


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def module_and_inputs(cell: str, layers: int = 2) -> tuple[nn.RNNBase, torch.Tensor]:
    return getattr(nn, cell)(24, 24, layers), torch.randn(5, 1, 24)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_contestants_compute_what_torch_nn_does(cell, native_library):
    module, inputs = module_and_inputs(cell)
    assert streaming.mismatches(module, streaming.contestants(module), inputs) == []


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("layers", [1, 2])
def test_onnx_runtime_is_given_the_same_layers(cell, layers):
    reason = streaming.onnx_runtime.missing()
    if reason is not None:
        pytest.skip(reason)
    module, inputs = module_and_inputs(cell, layers)
    plain, bound = streaming._onnx_steps(module)
    assert streaming.mismatches(module, {"plain": plain, "bound": bound}, inputs) == []


def test_a_contestant_that_is_wrong_is_named():
    module, inputs = module_and_inputs("GRU")
    right, other = streaming._module_step(module), streaming._module_step(module)
    steps = {"right": right, "wrong": lambda x: other(x) * 1.001, "nan": lambda x: torch.full((1, 24), torch.nan)}
    assert [line.partition(":")[0] for line in streaming.mismatches(module, steps, inputs)] == ["wrong", "nan"]


def test_a_state_that_is_not_carried_is_noticed():
    module, inputs = module_and_inputs("LSTM")
    assert streaming.mismatches(module, {"forgets": lambda x: module(x)[0]}, inputs)


@pytest.mark.parametrize("option", ["--sizes", "--layers", "--threads"])
def test_sizes_and_threads_are_positive(option, capsys):
    with pytest.raises(SystemExit):
        streaming.main([option, "0"])
    assert f"argument {option}: 0 is less than 1" in capsys.readouterr().err


def test_the_command_writes_a_result_file(tmp_path, capsys, threads, native_library):
    threads(1)
    out = tmp_path / "folder" / "streaming.json"
    assert streaming.main(["--sizes", "16", "--layers", "1", "--seconds", "0.01", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert [(case["cell"], case["H"], case["num_layers"], case["refused"]) for case in result["cases"]] == [
        ("LSTM", 16, 1, []),
        ("GRU", 16, 1, []),
    ]
    for case in result["cases"]:
        assert {"torch.nn", "rnnkernels module", "stream", "stream, bfloat16 weights"} <= set(case["results"])
        assert case["results"]["stream"]["stream_is_faster_by"] == 1
        for times in case["results"].values():
            assert 0 < times["min_us"] <= times["median_us"] and 0 < times["p50_us"] <= times["p99_us"]
    assert f"written to {out}" in capsys.readouterr().out


def test_what_is_wrong_is_not_timed(tmp_path, monkeypatch, capsys, threads):
    threads(1)
    monkeypatch.setattr(streaming, "mismatches", lambda module, steps, inputs: ["stream: off by 1"])
    out = tmp_path / "streaming.json"
    assert streaming.main(["--sizes", "16", "--layers", "1", "--seconds", "0.01", "--out", str(out)]) == 1
    assert all(case["results"] == {} for case in json.loads(out.read_text())["cases"])
    assert "refused: stream: off by 1" in capsys.readouterr().out
