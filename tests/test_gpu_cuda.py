"""The CUDA kernels on a real GPU: every schedule against the oracle, repeatable, captured, on the current stream."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import Case, draw, evaluate, ours
from gpu_problems import assert_a_graph_replays_on_new_input, assert_as_exact_as_cudnn, on_gpu
from torch import Tensor

from rnnkernels import _library, functional, use_backend
from rnnkernels.backends import Request, native

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not _library.load_cuda().available, reason="the CUDA library is not built"),
]

CELLS = ("lstm", "gru")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [(17, 3), (64, 16), (100, 33), (128, 16), (200, 5), (512, 16), (1000, 40)]
LENGTHS = tuple(sorted((1 + 7 * i % 11 for i in range(35)), reverse=True))


@pytest.fixture(autouse=True)
def cuda_in_this_thread() -> Iterator[None]:
    """Backward in the calling thread: a schedule is forced per thread."""
    with use_backend("cuda"), torch.autograd.set_multithreading_enabled(False):
        yield


def offered(case: Case) -> list[dict]:
    """What :func:`native.forced` may be given for both passes of a layer."""
    sizes = (case.input_size, case.hidden_size, case.proj_size, case.num_layers)
    layer = Request(case.cell, torch.device("cuda", 0), case.dtype, *sizes, case.bidirectional)
    batch = len(case.lengths) if case.lengths else case.batch
    forward, backward = (
        {(c["schedule"], c["tile"], c["ctas"] if c["tile"] else None) for c in native.candidates(layer, batch, back)}
        for back in (False, True)
    )
    return [{"schedule": s, "tile": t, "ctas": n} for s, t, n in sorted(forward & backward, key=str)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("hidden_size", "batch"), SIZES)
@pytest.mark.parametrize("cell", CELLS)
def test_every_schedule_offered_is_as_exact_as_cudnn(
    cell: str, hidden_size: int, batch: int, dtype: torch.dtype, precision
) -> None:
    case = Case(cell, input_size=24, hidden_size=hidden_size, steps=7, batch=batch, dtype=dtype)
    for name in ("ieee", "tf32") if dtype == torch.float32 else ("ieee",):
        precision(name)
        for how in offered(case):
            with native.forced(**how):
                assert_as_exact_as_cudnn(draw(case))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden_size", [40, 300])
@pytest.mark.parametrize("cell", CELLS)
def test_packed_batches_in_both_directions_are_as_exact_as_cudnn(cell: str, hidden_size: int, bias: bool) -> None:
    case = Case(cell, hidden_size=hidden_size, lengths=LENGTHS, bidirectional=True, num_layers=2, bias=bias)
    for how in offered(case):
        with native.forced(**how):
            assert_as_exact_as_cudnn(draw(case))


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_projections_and_float64_go_step_by_step_and_are_as_exact_as_cudnn(dtype: torch.dtype, lengths) -> None:
    assert_as_exact_as_cudnn(draw(Case("lstm", hidden_size=40, proj_size=24, bidirectional=True, lengths=lengths, dtype=dtype)))
    assert_as_exact_as_cudnn(draw(Case("gru", hidden_size=40, bidirectional=True, lengths=lengths, dtype=torch.float64)))


@pytest.mark.parametrize("hidden_size", [64, 512])
@pytest.mark.parametrize("cell", CELLS)
def test_the_same_call_gives_the_same_bits_whatever_new_memory_holds(cell: str, hidden_size: int, poisoned_memory: None) -> None:
    case = Case(cell, hidden_size=hidden_size, steps=50, batch=32, dtype=torch.bfloat16)
    problem = draw(case)
    for how in offered(case):
        with native.forced(**how):
            first = evaluate(on_gpu(ours), problem)
            for _ in range(3):
                for name, value in evaluate(on_gpu(ours), problem).items():
                    assert torch.equal(value, first[name]), (name, how)


@pytest.mark.parametrize("schedule", ["planned", "stepwise"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("hidden_size", [64, 512, 3000])
@pytest.mark.parametrize("cell", CELLS)
def test_a_captured_graph_replays_forward_and_backward_on_new_input(
    cell: str, hidden_size: int, bidirectional: bool, schedule: str
) -> None:
    case = Case(cell, hidden_size=hidden_size, steps=5, batch=16, bidirectional=bidirectional, dtype=torch.float16)
    problem = draw(case)
    weights = [w.cuda().requires_grad_() for w in problem.weights.values()]
    x = problem.input.cuda()

    def step() -> tuple[Tensor, ...]:
        with native.forced("" if schedule == "planned" else schedule):
            output, _ = getattr(functional, cell)(x, None, weights, bidirectional=bidirectional)
            return output.detach(), *torch.autograd.grad(output.float().square().sum(), weights)

    assert_a_graph_replays_on_new_input(step, x, case)


@pytest.mark.parametrize("schedule", ["planned", "stepwise"])
@pytest.mark.parametrize("cell", CELLS)
def test_work_goes_to_the_current_stream(cell: str, schedule: str) -> None:
    """Input that a slow kernel on the stream is still to write: on another stream it would be read too early."""
    problem = draw(Case(cell, hidden_size=64, steps=9, batch=16))
    weights, new = [w.cuda() for w in problem.weights.values()], problem.input.cuda()
    layer = getattr(functional, cell)
    with native.forced("" if schedule == "planned" else schedule):
        expected = layer(new, None, weights)[0]
        x = torch.zeros_like(new)
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(50_000_000)
            x.copy_(new)
            actual = layer(x, None, weights)[0]
        torch.cuda.synchronize()
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("hidden_size", [64, 512, 1000])
@pytest.mark.parametrize("cell", CELLS)
def test_a_packed_batch_is_captured_by_every_schedule_offered(cell: str, hidden_size: int) -> None:
    """A graph repeats the lengths it was captured with, on new input."""
    case = Case(cell, hidden_size=hidden_size, lengths=LENGTHS, dtype=torch.bfloat16)
    weights = [w.cuda() for w in draw(case).weights.values()]
    x = draw(case).input.cuda()
    for how in offered(case):
        with native.forced(**how):

            def step() -> Tensor:
                return getattr(functional, cell)(x, None, weights, batch_sizes=case.batch_sizes)[0]

            step()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = step()
            x.copy_(draw(case, seed=1).input)
            graph.replay()
            assert torch.equal(captured, step()), how


@pytest.mark.parametrize("cell", CELLS)
def test_a_schedule_that_cannot_serve_a_layer_is_refused_with_the_reason(cell: str) -> None:
    problem = draw(Case(cell, hidden_size=1000, steps=2, batch=2))
    with native.forced("one CTA"), pytest.raises(RuntimeError, match=r"warps|shared memory"):
        evaluate(on_gpu(ours), problem)
