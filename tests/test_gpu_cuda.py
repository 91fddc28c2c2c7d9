"""The CUDA kernels on a real GPU: every schedule and tile against the oracle, repeatable, captured, on streams, or refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import Case, draw, evaluate, ours
from gpu import CELLS, DTYPES, assert_as_exact_as_cudnn, on_gpu
from torch import Tensor

from rnnkernels import _library, functional, use_backend
from rnnkernels.backends import Request, native

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cuda_in_this_thread() -> Iterator[None]:
    """Backward in the calling thread: a schedule is forced per thread."""
    status = _library.load_cuda()
    if not status.available:
        pytest.skip(status.reason)
    with use_backend("cuda"), torch.autograd.set_multithreading_enabled(False):
        yield


@pytest.fixture(params=["tf32", "ieee"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """How float32 products of recurrent layers are computed."""
    switch = torch.backends.cudnn.rnn
    before, switch.fp32_precision = switch.fp32_precision, request.param
    yield request.param
    switch.fp32_precision = before


def offered(case: Case) -> list[dict]:
    """What can compute both passes of a layer: the arguments of :func:`native.forced`."""
    device = torch.device("cuda", torch.cuda.current_device())
    request = Request(case.cell, device, case.dtype, case.input_size, case.hidden_size, case.proj_size, 1, case.bidirectional)
    batch = len(case.lengths) if case.lengths else case.batch
    forward, backward = (
        [(plan["schedule"], plan["tile"], plan["ctas"]) for plan in native.candidates(request, batch, way)]
        for way in (False, True)
    )
    return [
        {"schedule": schedule, **({"tile": tile, "ctas": ctas} if tile else {})}
        for schedule, tile, ctas in forward
        if (schedule, tile, ctas) in backward
    ]


def names(case: Case) -> list[dict]:
    """The schedules among them, each pass as planned."""
    return [{"schedule": name} for name in dict.fromkeys(choice["schedule"] for choice in offered(case))]


SIZES = [(17, 3), (64, 16), (100, 33), (128, 16), (200, 5), (512, 16), (1000, 40)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("hidden_size", "batch"), SIZES)
@pytest.mark.parametrize("cell", CELLS)
def test_every_tile_offered_is_as_exact_as_cudnn(
    cell: str, hidden_size: int, batch: int, dtype: torch.dtype, precision: str
) -> None:
    if dtype != torch.float32 and precision == "ieee":
        pytest.skip("the switch is float32's")
    case = Case(cell, input_size=24, hidden_size=hidden_size, steps=7, batch=batch, dtype=dtype)
    problem = draw(case)
    choices = offered(case)
    assert choices[-1] == {"schedule": "stepwise"}
    for choice in choices:
        with native.forced(**choice):
            assert_as_exact_as_cudnn(problem)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden_size", [40, 300])
@pytest.mark.parametrize("cell", CELLS)
def test_packed_batches_in_both_directions_are_as_exact_as_cudnn(cell: str, hidden_size: int, bias: bool) -> None:
    lengths = tuple(sorted((1 + 7 * i % 11 for i in range(35)), reverse=True))
    case = Case(cell, hidden_size=hidden_size, lengths=lengths, bidirectional=True, num_layers=2, bias=bias)
    for choice in names(case):
        with native.forced(**choice):
            assert_as_exact_as_cudnn(draw(case))


def test_a_projected_lstm_and_float64_take_single_steps() -> None:
    assert_as_exact_as_cudnn(draw(Case("lstm", hidden_size=40, proj_size=24, bidirectional=True)))
    assert_as_exact_as_cudnn(draw(Case("gru", hidden_size=40, dtype=torch.float64)))


@pytest.mark.parametrize("hidden_size", [64, 512])
@pytest.mark.parametrize("cell", CELLS)
def test_the_same_call_gives_the_same_bits_whatever_new_memory_holds(cell: str, hidden_size: int, poisoned_memory: None) -> None:
    case = Case(cell, hidden_size=hidden_size, steps=200, batch=32, dtype=torch.bfloat16)
    problem = draw(case)
    for choice in offered(case):
        with native.forced(**choice):
            first = evaluate(on_gpu(ours), problem)
            for _ in range(3):
                for name, value in evaluate(on_gpu(ours), problem).items():
                    assert torch.equal(value, first[name]), (name, choice)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("hidden_size", [64, 512, 1000])
@pytest.mark.parametrize("cell", CELLS)
def test_a_captured_graph_replays_forward_and_backward_on_new_input(cell: str, hidden_size: int, packed: bool) -> None:
    case = Case(cell, hidden_size=hidden_size, steps=5, batch=16, dtype=torch.float16)
    problem = draw(case)
    weights = [w.cuda().requires_grad_() for w in problem.weights.values()]
    x = problem.input.cuda()
    batch_sizes = torch.full((5,), 16) if packed else None

    def step() -> tuple[Tensor, ...]:
        data = x.flatten(0, 1) if packed else x
        output, _ = getattr(functional, cell)(data, None, weights, batch_sizes=batch_sizes)
        return output.detach(), *torch.autograd.grad(output.float().square().sum(), weights)

    for choice in names(case):
        with native.forced(**choice):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = step()
            for seed in (1, 2):
                x.copy_(draw(case, seed).input)
                graph.replay()
                for value, wanted in zip(captured, step(), strict=True):
                    assert torch.equal(value, wanted), choice


@pytest.mark.parametrize("cell", CELLS)
def test_work_goes_to_the_current_stream(cell: str) -> None:
    """Input that a slow kernel on the stream is still to write: on another stream it would be read too early."""
    case = Case(cell, hidden_size=64, steps=9, batch=16)
    weights = [w.cuda() for w in draw(case).weights.values()]
    new = draw(case).input.cuda()
    layer = getattr(functional, cell)
    for choice in names(case):
        with native.forced(**choice):
            expected = layer(new, None, weights)[0]
            x = torch.zeros_like(new)
            torch.cuda.synchronize()
            with torch.cuda.stream(torch.cuda.Stream()):
                torch.cuda._sleep(50_000_000)
                x.copy_(new)
                actual = layer(x, None, weights)[0]
            torch.cuda.synchronize()
        assert torch.equal(actual, expected), choice


@pytest.mark.parametrize("cell", CELLS)
def test_a_schedule_that_cannot_serve_a_layer_is_refused_with_the_reason(cell: str) -> None:
    problem = draw(Case(cell, hidden_size=1000, steps=2, batch=2))
    with native.forced("one CTA"), pytest.raises(RuntimeError, match=r"warps|shared memory"):
        evaluate(on_gpu(ours), problem)
