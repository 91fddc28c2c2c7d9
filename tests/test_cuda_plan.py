"""The CUDA kernels' plan as Python sees it, and the backend that asks it. No GPU needed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rnnkernels import _library
from rnnkernels.backends import Request, choose, explain_request, native, use_backend

_C = pytest.importorskip("rnnkernels._C")
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
H200 = {"compute_capability": 90, "multiprocessors": 132, "shared_bytes": 232448, "most_cluster": 16}


def plan(**changes):
    return _C.cuda_plan(**{"cell": "lstm", "dtype": "bfloat16", "backward": False, "hidden": 256, "batch": 16, **H200, **changes})


def test_a_plan_names_schedule_tile_and_reason() -> None:
    chosen = plan()
    assert chosen["schedule"] == "cluster"
    assert chosen["tile"] in ("narrow", "tall", "deep")
    assert chosen["ctas"] * chosen["units"] >= 256
    assert chosen["shared_bytes"] <= H200["shared_bytes"]
    assert "cluster" in chosen["reason"] and "us per step" in chosen["reason"]


def test_a_layer_that_fits_no_cluster_takes_the_whole_grid() -> None:
    chosen = plan(hidden=1024)
    assert (chosen["schedule"], chosen["tile"], chosen["ctas"], chosen["slices_at_once"]) == ("grid", "even", 64, 2)
    assert "64 CTAs, even tile, 16 units each, slices of 8, 2 at once" in chosen["reason"]


def test_a_layer_that_fits_no_grid_goes_step_by_step_and_says_why() -> None:
    chosen = plan(hidden=2800)
    assert chosen["schedule"] == "stepwise" and chosen["tile"] is None
    assert "nothing persistent fits" in chosen["reason"]
    assert "projected state" in plan(projected=True)["reason"]
    assert "float64" in plan(dtype="float64")["reason"]
    assert "compute capability 8.0" in plan(hidden=64, compute_capability=75, most_cluster=1)["reason"]


def test_what_fits_is_listed_with_stepwise_last() -> None:
    candidates = plan()["candidates"]
    assert {c["schedule"] for c in candidates} == {"cluster", "grid", "stepwise"}
    assert candidates[-1]["schedule"] == "stepwise"
    assert all(c["shared_bytes"] <= H200["shared_bytes"] for c in candidates)


def test_float32_costs_what_its_products_cost() -> None:
    candidates = [plan(dtype="float32", tf32=tf32, batch=64)["candidates"] for tf32 in (True, False)]
    tf32, exact = (min(candidate["microseconds"] for candidate in of) for of in candidates)
    assert tf32 < exact


@pytest.mark.parametrize("wrong", [{"cell": "rnn"}, {"dtype": "int32"}, {"hidden": 0}, {"directions": 0}])
def test_a_request_that_makes_no_sense_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match="must be"):
        plan(**wrong)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no CUDA schedule spiral"):
        plan(schedule="spiral")


def request(**changes) -> Request:
    gpu = torch.device("cuda", 0)
    return Request(**{"cell": "gru", "device": gpu, "dtype": torch.float32, "input_size": 4, "hidden_size": 8, **changes})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """``gpu(major, minor)``: the library and a GPU of that compute capability are there, as far as Python asks."""

    def pretend(major: int, minor: int) -> None:
        properties = SimpleNamespace(
            major=major, minor=minor, multi_processor_count=132, shared_memory_per_block_optin=H200["shared_bytes"]
        )
        monkeypatch.setattr(_library, "load_cuda", lambda: _library.Status(True, None, _library.CUDA_PATH))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        native._plan_for.cache_clear()

    yield pretend
    native._plan_for.cache_clear()


def test_the_backend_serves_every_layer_from_compute_capability_7_on(gpu) -> None:
    for capability in ((7, 0), (7, 5), (9, 0)):
        gpu(*capability)
        for dtype in (torch.float32, torch.float64, torch.float16):
            for changes in ({}, {"cell": "lstm", "proj_size": 3}, {"hidden_size": 5000, "bidirectional": True, "packed": True}):
                assert native.cuda_unsupported(request(dtype=dtype, **changes)) is None


@pytest.mark.parametrize(
    ("capability", "changes", "reason"),
    [
        ((9, 0), {"device": torch.device("cpu")}, "the tensors are on cpu"),
        ((9, 0), {"dtype": torch.int32}, "int32 is not one of float32, float64"),
        ((6, 1), {}, "compute capability is 6.1 and float32 needs 7.0"),
        ((7, 5), {"dtype": torch.bfloat16}, "compute capability is 7.5 and bfloat16 needs 8.0"),
    ],
)
def test_the_backend_says_what_it_cannot_serve(gpu, capability, changes, reason) -> None:
    gpu(*capability)
    assert reason in native.cuda_unsupported(request(**changes))


def test_auto_takes_the_kernels_where_they_were_measured_ahead_and_says_why_not_elsewhere(gpu) -> None:
    gpu(9, 0)
    ahead = request(hidden_size=256, dtype=torch.bfloat16)
    assert choose(ahead).name == "cuda"
    assert choose(ahead._replace(packed=True, num_layers=2)).name == "cuda"
    for changes, reason in (
        ({"hidden_size": 63}, "64 to 1024 hidden units were measured ahead"),
        ({"hidden_size": 128, "dtype": torch.float32}, "193 to 1024 hidden units"),
        ({"hidden_size": 768, "dtype": torch.float16, "cell": "lstm"}, "193 to 512 hidden units"),
        ({"num_layers": 2, "bidirectional": True}, "more than two layers or directions"),
        ({"cell": "lstm", "proj_size": 8}, "go step by step"),
        ({"dtype": torch.float64}, "go step by step"),
        ({"one_step": True}, "in cells"),
    ):
        asked = ahead._replace(**changes)
        assert choose(asked).name == "aten"
        assert reason in explain_request(asked).objections["cuda"]
        with use_backend("cuda"):
            assert choose(asked).name == "cuda"
            assert explain_request(asked).objections["cuda"] is None
    assert choose(ahead._replace(transformed=True)).name == "reference"
    gpu(8, 0)
    assert choose(ahead).name == "aten"
    assert "compute capability 9.0 only" in explain_request(ahead).objections["cuda"]


def test_in_float32_auto_follows_torchs_switch(gpu, precision) -> None:
    gpu(9, 0)
    layer = request(hidden_size=256)
    precision("tf32")
    assert choose(layer).name == "cuda"
    precision("ieee")
    assert choose(layer).name == "aten"


def test_auto_never_takes_the_kernels_where_they_were_measured_behind(gpu, precision) -> None:
    gpu(9, 0)
    rows = json.loads((RESULTS / "h200" / "speed.json").read_text())["rows"]
    taken = 0
    for row in rows:
        case, speedups = row["case"], row["results"]["cuda plan"]
        precision("ieee" if row["precision"] == "ieee" else "tf32")
        structure = {name: case[name] for name in ("proj_size", "num_layers", "bidirectional", "packed")}
        layer = request(cell=case["cell"], hidden_size=case["H"], dtype=getattr(torch, case["dtype"]), **structure)
        if choose(layer).name == "cuda":
            taken += 1
            assert min(speedups[clock]["speedup"] for clock in ("kernel", "wall")) > 1, row["key"]
    assert taken > len(rows) / 2


def test_a_forced_schedule_is_planned_and_explained(gpu) -> None:
    gpu(9, 0)
    layer = request(cell="lstm", hidden_size=256, dtype=torch.bfloat16)
    assert native.plan(layer, 16, backward=False)["schedule"] == "cluster"
    with native.forced("cluster", tile="deep", ctas=8):
        chosen = native.plan(layer, 16, backward=False)
        assert (chosen["schedule"], chosen["tile"], chosen["ctas"]) == ("cluster", "deep", 8)
    with native.forced("grid", tile="wide"):
        assert native.plan(layer, 16, backward=True)["ctas"] == 8
    with native.forced("one CTA"):
        assert "more than 8 warps hold" in native.plan(layer, 16, backward=False)["reason"]
    with use_backend("cuda"), native.forced("stepwise"):
        assert "forward asked for: stepwise" in str(explain_request(layer, batch=16))
    assert native.candidates(layer, 16, backward=True)[-1]["schedule"] == "stepwise"


def test_plans_follow_torchs_switch_for_recurrent_layers(gpu) -> None:
    gpu(9, 0)
    switch = torch.backends.cudnn.rnn
    before, microseconds = switch.fp32_precision, {}
    try:
        for precision in ("tf32", "ieee"):
            switch.fp32_precision = precision
            microseconds[precision] = native.plan(request(hidden_size=256), 64, backward=False)["microseconds"]
    finally:
        switch.fp32_precision = before
    assert microseconds["tf32"] < microseconds["ieee"]


@pytest.mark.parametrize("name", ["lstm_forward", "lstm_backward", "gru_forward", "gru_backward"])
def test_operators_reach_the_cuda_librarys_with_the_manner_they_are_asked_for(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"rnnkernels::{name}", "CUDA")
    arguments = [a.name for a in getattr(torch.ops.rnnkernels, name).default._schema.arguments]
    cuda = [a.name for a in getattr(torch.ops.rnnkernels, f"cuda_{name}").default._schema.arguments]
    assert cuda == [*arguments, "allow_tf32", *native.Wish._fields]


@pytest.mark.skipif(_library.load_cuda().available, reason="the CUDA library is there")
def test_without_the_library_backend_and_operators_say_so() -> None:
    assert "CUDA kernels were not built" in native.cuda_unsupported(request())
    with pytest.raises(RuntimeError, match="CUDA kernels were not built"):
        native.implementation("lstm_forward")(torch.zeros(1))
