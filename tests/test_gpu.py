"""The Triton kernels on a real GPU: every schedule against the oracle, repeatable, captured, on streams, in several launches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cases import Case, draw, evaluate, ours
from gpu_problems import assert_a_graph_replays_on_new_input, assert_as_exact_as_cudnn, on_gpu
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from rnnkernels import functional, use_backend
from rnnkernels.backends.triton import interpreted, sequence, tuning
from rnnkernels.backends.triton.plan import STEPWISE, Tiling, Workload, candidates

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(interpreted(), reason="TRITON_INTERPRET=1: the kernels run on the CPU"),
]

CELLS = ("lstm", "gru")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PRECISIONS = {torch.float32: ["ieee", "tf32"], torch.bfloat16: ["ieee"], torch.float16: ["ieee"]}


@pytest.fixture(autouse=True)
def triton_in_this_thread() -> Iterator[None]:
    """Backward in the calling thread: a tiling is forced per thread."""
    with use_backend("triton"), torch.autograd.set_multithreading_enabled(False):
        yield


def offered(
    cell: str, backward: bool, hidden_size: int, dtype: torch.dtype, batch: int = 16, directions: int = 1
) -> list[Tiling]:
    tensor = torch.empty(0, dtype=dtype, device="cuda")
    work = Workload(cell, backward, hidden_size, batch, directions, dtype.itemsize, sequence.precision(dtype))
    return candidates(work, sequence.device_of(tensor))


SIZES = [(17, 3), (64, 16), (100, 33), (128, 16), (200, 5), (512, 16), (1000, 40)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("hidden_size", "batch"), SIZES)
@pytest.mark.parametrize("cell", CELLS)
def test_every_tiling_offered_is_as_exact_as_cudnn(
    cell: str, hidden_size: int, batch: int, dtype: torch.dtype, precision
) -> None:
    for name in PRECISIONS[dtype]:
        precision(name)
        problem = draw(Case(cell, input_size=24, hidden_size=hidden_size, steps=7, batch=batch, dtype=dtype))
        both = {t for backward in (False, True) for t in offered(cell, backward, hidden_size, dtype, batch)}
        for tiling in sorted(both):
            with tuning.forced(tiling):
                assert_as_exact_as_cudnn(problem)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden_size", [40, 300])
@pytest.mark.parametrize("cell", CELLS)
def test_packed_batches_in_both_directions_are_as_exact_as_cudnn(cell: str, hidden_size: int, bias: bool) -> None:
    lengths = tuple(sorted((1 + 7 * i % 11 for i in range(35)), reverse=True))
    case = Case(cell, hidden_size=hidden_size, lengths=lengths, bidirectional=True, num_layers=2, bias=bias)
    for tiling in {t for backward in (False, True) for t in offered(cell, backward, hidden_size, torch.float32, 35, 2)}:
        with tuning.forced(tiling):
            assert_as_exact_as_cudnn(draw(case))


def test_a_projected_lstm_and_float64_take_single_steps() -> None:
    assert_as_exact_as_cudnn(draw(Case("lstm", hidden_size=40, proj_size=24, bidirectional=True)))
    assert_as_exact_as_cudnn(draw(Case("gru", hidden_size=40, dtype=torch.float64)))


@pytest.mark.parametrize("hidden_size", [64, 512])
@pytest.mark.parametrize("cell", CELLS)
def test_the_same_call_gives_the_same_bits_whatever_new_memory_holds(cell: str, hidden_size: int, poisoned_memory: None) -> None:
    problem = draw(Case(cell, hidden_size=hidden_size, steps=50, batch=32, dtype=torch.bfloat16))
    for tiling in offered(cell, True, hidden_size, torch.bfloat16, 32):
        with tuning.forced(tiling):
            first = evaluate(on_gpu(ours), problem)
            for _ in range(3):
                for name, value in evaluate(on_gpu(ours), problem).items():
                    assert torch.equal(value, first[name]), (name, tiling)


@pytest.mark.parametrize("cell", CELLS)
def test_more_row_blocks_than_fit_at_once_are_computed_in_several_launches(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = []
    start = sequence.start
    monkeypatch.setattr(sequence, "start", lambda *arguments: (launches.append(arguments[1]), start(*arguments)))
    problem = draw(Case(cell, hidden_size=1024, steps=3, batch=200, dtype=torch.bfloat16))
    grids = [t for t in offered(cell, True, 1024, torch.bfloat16, 200) if t.schedule == "grid"]
    if not grids:
        pytest.skip("this GPU has too few processors for a grid of 1024 units")
    with tuning.forced(grids[0]):
        assert_as_exact_as_cudnn(problem)
    assert len(launches) > 2


@pytest.mark.parametrize("hidden_size", [64, 512, 3000])
@pytest.mark.parametrize("cell", CELLS)
def test_a_captured_graph_replays_forward_and_backward_on_new_input(cell: str, hidden_size: int) -> None:
    problem = draw(Case(cell, hidden_size=hidden_size, steps=5, batch=16, dtype=torch.float16))
    weights = [w.cuda().requires_grad_() for w in problem.weights.values()]
    x = problem.input.cuda()

    def step() -> tuple[Tensor, ...]:
        output, _ = getattr(functional, cell)(x, None, weights)
        return output.detach(), *torch.autograd.grad(output.float().square().sum(), weights)

    assert_a_graph_replays_on_new_input(step, x, problem.case)


@pytest.mark.parametrize("tiling_of", [lambda found: found[0], lambda found: STEPWISE], ids=["planned", "stepwise"])
@pytest.mark.parametrize("cell", CELLS)
def test_work_goes_to_the_current_stream(cell: str, tiling_of) -> None:
    """Input that a slow kernel on the stream is still to write: on another stream it would be read too early."""
    weights = [w.cuda() for w in draw(Case(cell, hidden_size=64, steps=9, batch=16)).weights.values()]
    new = draw(Case(cell, hidden_size=64, steps=9, batch=16)).input.cuda()
    layer = getattr(functional, cell)
    with tuning.forced(tiling_of(offered(cell, False, 64, torch.float32))):
        expected = layer(new, None, weights)[0]
        x = torch.zeros_like(new)
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(50_000_000)
            x.copy_(new)
            actual = layer(x, None, weights)[0]
        torch.cuda.synchronize()
    assert torch.equal(actual, expected)
