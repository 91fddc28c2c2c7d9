"""Every peer of ``python -m benchmarks`` computes what torch.nn does, or says why it is not measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import baseline, providers
from benchmarks.cases import Case, make_problem
from benchmarks.gate import Gate
from benchmarks.providers import compiled_cell, jax_scan, onnx_runtime

DENSE = Case("lstm", "inference", 6, 3, 5, 8)
SHAPES = {
    "dense": {},
    "packed": {"packed": True},
    "bidirectional": {"bidirectional": True},
    "layers": {"num_layers": 2, "bidirectional": True},
    "projection": {"proj_size": 4},
}


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def admitted(name: str, case: Case) -> None:
    provider = providers.make(name)
    if provider.absent is not None:
        pytest.skip(provider.absent)
    assert provider.unsupported(case) is None
    problem = make_problem(case, seed=3)
    prepared = provider.prepare(problem)
    with prepared.scope():
        prepared.call()
    for _ in range(2):  # what is timed leaves nothing behind that changes the results
        assert Gate(problem).check(name, prepared.results(), provider.omits) <= 1
        with prepared.scope():
            prepared.call()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("mode", ["forward", "backward", "training", "streaming"])
@pytest.mark.parametrize("name", ["torch.nn", "rnnkernels"])
def test_every_mode_is_computed_by_modules(name, mode, cell):
    admitted(name, replace(DENSE, cell=cell, mode=mode, T=1 if mode == "streaming" else 6))


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("name", ["torch.nn:padded", "rnnkernels:padded"])
def test_the_padded_batch_has_the_ragged_batchs_results(name, cell, mode):
    admitted(name, replace(DENSE, cell=cell, mode=mode, packed=True))


@pytest.mark.parametrize("shape", ["dense", "packed", "bidirectional", "layers"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_onnx_runtime_is_given_the_same_layers(cell, shape):
    admitted("onnxruntime", replace(DENSE, cell=cell, **SHAPES[shape]))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("name", ["onnxruntime", "jax"])
def test_peers_stream(name, cell):
    admitted(name, Case(cell, "streaming", 1, 2, 5, 8, num_layers=2))


@pytest.mark.parametrize(
    ("cell", "mode", "shape"),
    [
        *(("lstm", "inference", "dense"), ("gru", "inference", "dense")),
        *(("lstm", "training", "layers"), ("gru", "training", "layers"), ("lstm", "training", "projection")),
    ],
)
def test_jax_is_given_the_same_layers(cell, mode, shape):
    admitted("jax", replace(DENSE, cell=cell, mode=mode, **SHAPES[shape]))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_compiled_cells_equations_are_torch_nns(cell, monkeypatch):
    """Without the compiler, which takes longer than everything else here."""
    monkeypatch.setattr(compiled_cell, "compiled", lambda cell: cell)
    admitted("torch.compile", replace(DENSE, cell=cell, mode="training"))


@pytest.mark.parametrize(
    ("name", "case", "reason"),
    [
        ("onnxruntime", replace(DENSE, mode="training"), "inference only"),
        ("onnxruntime", replace(DENSE, proj_size=4), "no projection"),
        ("onnxruntime", replace(DENSE, dtype="bfloat16"), "not bfloat16"),
        ("jax", replace(DENSE, packed=True), "no ragged sequences"),
        ("torch.nn:padded", DENSE, "not ragged"),
        ("torch.nn:padded", replace(DENSE, packed=True, bidirectional=True), "begin in the padding"),
        ("torch.compile", replace(DENSE, num_layers=2), "one dense layer"),
    ],
)
def test_what_a_peer_cannot_do_has_a_reason(name, case, reason):
    assert reason in providers.make(name).unsupported(case)


@pytest.mark.parametrize("name", ["onnxruntime", "jax", "flashrnn", "torchrl", "haste"])
def test_a_peer_that_is_not_installed_is_named_as_such(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    assert "not installed" in providers.make(name).absent


def test_peers_of_the_cpu_are_absent_elsewhere():
    assert "not on cuda" in providers.make("jax", "cuda").absent
    assert "tensors are on cuda" in providers.make("rnnkernels:cpu", "cuda").unsupported(DENSE)


def test_jax_says_when_it_was_started_with_other_threads(monkeypatch):
    pytest.importorskip("jax")
    monkeypatch.setattr(jax_scan, "_threads", lambda: 7)
    assert "XLA has 7 threads" in jax_scan.provider("jax").absent


def test_onnx_runtime_has_the_runs_threads(monkeypatch):
    if onnx_runtime.missing() is not None:
        pytest.skip(onnx_runtime.missing())
    problem = make_problem(DENSE, seed=0)
    made = onnx_runtime.session(onnx_runtime.model("lstm", problem.weights, layers=1))
    assert made.get_session_options().intra_op_num_threads == torch.get_num_threads() == 1


def test_what_torch_nn_ran_is_observed():
    assert baseline.kernel(replace(DENSE, cell="gru", T=1000)).startswith("unfused")
    if torch.backends.mkldnn.is_available():
        assert baseline.kernel(DENSE) == "oneDNN, fused layer"
        assert baseline.kernel(replace(DENSE, packed=True)).startswith("unfused")
