"""Calls from several threads at once, inside torch's own parallel regions, and in forked processes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import Case, draw, evaluate, ours
from subprocesses import output_of

from rnnkernels import use_backend

CASES = [
    Case("lstm", input_size=33, hidden_size=65, steps=9, batch=17, bidirectional=True),
    Case("gru", input_size=33, hidden_size=65, lengths=(9, 9, 8, 5, 5, 2, 1), num_layers=2),
    Case("lstm", hidden_size=40, proj_size=20, steps=7, batch=3, dtype=torch.bfloat16),
    Case("gru", hidden_size=300, input_size=50, steps=5, batch=40),
    Case("lstm", hidden_size=260, steps=3, batch=16),  # threads share the units of a step
    Case("gru", hidden_size=600, steps=2, batch=40),  # and of more rows where the weights are large
]


@pytest.mark.parametrize("n_threads", [1, 2])
def test_calls_from_several_python_threads_do_not_disturb_each_other(backend: str, n_threads: int, threads) -> None:
    threads(n_threads)
    problems = [draw(case) for case in CASES]
    expected = [evaluate(ours, problem) for problem in problems]
    start = threading.Barrier(8)

    def work(index: int) -> list[str]:
        torch.set_num_threads(n_threads)
        wrong = []
        with use_backend(backend):
            start.wait()
            for round in range(6):
                k = (index + round) % len(problems)
                results = evaluate(ours, problems[k])
                wrong += [f"{CASES[k]}: {n}" for n, v in results.items() if not torch.equal(v, expected[k][n])]
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert [wrong for wrongs in pool.map(work, range(8)) for wrong in wrongs] == []


@pytest.mark.backends("cpu")  # the matrix products of the reference take their thread count from the whole process
def test_each_python_thread_may_have_its_own_thread_count(backend: str, threads) -> None:
    problem = draw(CASES[0])
    expected = {}
    for n in (1, 2, 3):
        threads(n)
        expected[n] = evaluate(ours, problem)

    def work(n: int) -> bool:
        # A thread's first use of torch's pool takes the count that any thread set last: let that be before its own is set.
        torch.get_num_threads()
        torch.set_num_threads(n)
        with use_backend(backend):
            return all(torch.equal(value, expected[n][name]) for _ in range(5) for name, value in evaluate(ours, problem).items())

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(work, (1, 2, 3)))


def test_backward_on_autograds_own_thread_equals_backward_on_the_callers(backend: str) -> None:
    """The graph is made in one thread and walked in another."""
    problem = draw(CASES[0])
    expected = evaluate(ours, problem)
    weights = {n: w.requires_grad_() for n, w in problem.weights.items()}
    results = ours(problem.case, problem.input, problem.states, weights)
    thread = threading.Thread(target=lambda: torch.autograd.backward(results, problem.grads))
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    for name, weight in weights.items():
        assert torch.equal(weight.grad, expected[f"grad of {name}"]), name


def test_a_call_inside_a_callback_of_torchs_neither_hangs_nor_differs(backend: str) -> None:
    """Callbacks of futures, and hooks that run inside another call's backward."""
    code = """
import sys, torch
from cases import draw, evaluate, ours
from test_threads import CASES
from rnnkernels import use_backend
torch.set_num_threads(2)
torch.set_num_interop_threads(3)
problem = draw(CASES[0])
with use_backend(sys.argv[1]):
    expected = evaluate(ours, problem)

def evaluate_here():
    with use_backend(sys.argv[1]), torch.enable_grad():
        return evaluate(ours, problem)

futures = [torch.futures.Future() for _ in range(4)]
thens = [future.then(lambda _: evaluate_here()) for future in futures]
for future in futures:
    future.set_result(None)
for value in torch.futures.wait_all(thens):
    assert all(torch.equal(value[name], expected[name]) for name in expected)

# The hook of a gradient runs inside backward, on autograd's thread.
seen = []
weights = {n: w.requires_grad_() for n, w in problem.weights.items()}
with use_backend(sys.argv[1]):
    output, *_ = ours(problem.case, problem.input, problem.states, weights)
output.register_hook(lambda _: seen.append(evaluate_here()))
output.sum().backward()
assert all(torch.equal(seen[0][name], expected[name]) for name in expected)
print("done")
"""
    assert output_of(code, backend).strip() == "done"


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_forked_process_can_compute(backend: str, used_before: bool, n_threads: int) -> None:
    """As data loader workers do. With several threads GNU's OpenMP may hang in a child whose parent used it, in any of torch's
    kernels: then a child must not use more threads than one, which is what torch's own workers set."""
    code = """
import os, sys, torch
from cases import draw, evaluate, ours
from test_threads import CASES
from rnnkernels import use_backend
backend, used_before, n_threads = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3])
torch.set_num_threads(n_threads)
problem = draw(CASES[0])
if used_before:
    with use_backend(backend):
        before = evaluate(ours, problem)
pid = os.fork()
if pid == 0:
    torch.set_num_threads(1)  # torch.utils.data does this in every worker
    with use_backend(backend):
        forward = ours(problem.case, problem.input, problem.states, problem.weights)[0]
    os._exit(0 if forward.isfinite().all() else 3)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert status == 0, status
with use_backend(backend):
    after = evaluate(ours, problem)
assert not used_before or all(torch.equal(after[name], before[name]) for name in after)
print("done")
"""
    assert output_of(code, backend, str(used_before), str(n_threads), timeout=60).strip() == "done"


def test_a_data_loader_worker_can_compute(backend: str) -> None:
    code = """
import sys, torch
from cases import Case, draw, ours
from rnnkernels import use_backend

class Encoded(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        problem = draw(Case("gru"), seed=index)
        with use_backend(sys.argv[1]):
            return ours(problem.case, problem.input, problem.states, problem.weights)[0]

dataset = Encoded()
torch.set_num_threads(1)  # as in a worker
expected = [dataset[i] for i in range(4)]
torch.set_num_threads(2)
loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
assert all(torch.equal(a, b) for a, b in zip(loader, expected))
print("done")
"""
    assert output_of(code, backend, timeout=60).strip() == "done"
