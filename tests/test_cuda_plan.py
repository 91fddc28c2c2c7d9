"""The CUDA kernels' plan as Python sees it, and the backend that asks it. No GPU needed."""

from __future__ import annotations

import pytest
import torch

from rnnkernels import _library
from rnnkernels.backends import Request, native

_C = pytest.importorskip("rnnkernels._C")
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


def test_a_layer_that_fits_no_cluster_is_told_why() -> None:
    chosen = plan(hidden=2048, persistent_only=True)
    assert chosen["schedule"] == "stepwise" and chosen["tile"] is None
    assert "warps hold" in chosen["reason"] or "shared memory" in chosen["reason"]


@pytest.mark.parametrize("wrong", [{"cell": "rnn"}, {"dtype": "float64"}, {"hidden": 0}, {"directions": 0}])
def test_a_request_that_makes_no_sense_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match="must be"):
        plan(**wrong)


def request(**changes) -> Request:
    gpu = torch.device("cuda", 0)
    return Request(**{"cell": "gru", "device": gpu, "dtype": torch.float32, "input_size": 4, "hidden_size": 8, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": torch.device("cpu")}, "the tensors are on cpu"),
        ({"dtype": torch.float64}, "float64 is not one of"),
        ({"cell": "lstm", "proj_size": 3}, "projected"),
    ],
)
def test_the_backend_says_what_it_cannot_serve(changes, reason) -> None:
    assert reason in native.cuda_unsupported(request(**changes))


@pytest.mark.skipif(_library.load_cuda().available, reason="the CUDA library is there")
def test_without_the_library_the_backend_says_so() -> None:
    assert "CUDA kernels were not built" in native.cuda_unsupported(request())
