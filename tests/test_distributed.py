"""DDP and FSDP on two processes compute what one process does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.fsdp
import torch.multiprocessing
from oracle import assert_same_mathematics
from torch import Tensor, nn

import rnnkernels
from rnnkernels import use_backend

STEPS = 3


class Tagger(nn.Module):
    """A recurrent stack and a head, as a user has them."""

    def __init__(self, cell: str):
        super().__init__()
        torch.manual_seed(0)
        recurrent = {"lstm": rnnkernels.LSTM, "gru": rnnkernels.GRU}[cell]
        self.rnn = recurrent(6, 8, num_layers=2, bidirectional=True, dtype=torch.float64)
        self.head = nn.Linear(16, 4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def train(model: nn.Module, parameters, batches: Tensor) -> None:
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for x in batches:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def all_batches() -> Tensor:
    """(STEPS, T, N, I); two processes take half of N each."""
    return torch.randn(STEPS, 5, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _worker(rank: int, rendezvous: str, wrapper: str, cell: str, backend: str, expected: dict[str, Tensor]) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(rendezvous, 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        model = Tagger(cell)
        own = all_batches().chunk(2, dim=2)[rank]
        with use_backend(backend):
            if wrapper == "ddp":
                train(nn.parallel.DistributedDataParallel(model), model.parameters(), own)
            else:
                mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
                torch.distributed.fsdp.fully_shard(model.rnn, mesh=mesh)
                torch.distributed.fsdp.fully_shard(model, mesh=mesh)
                train(model, model.parameters(), own)
        for name, parameter in model.named_parameters():
            value = parameter.full_tensor() if wrapper == "fsdp" else parameter
            assert_same_mathematics(value.detach(), expected[name], name)
        torch.distributed.barrier()  # neither leaves while the other may still talk to it
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.backends("auto")
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_two_processes_train_to_the_weights_of_one(backend: str, cell: str, wrapper: str, tmp_path: Path) -> None:
    """In float64, where averaging two halves differs from averaging the whole by rounding only."""
    single = Tagger(cell)
    train(single, single.parameters(), all_batches())
    expected = {name: p.detach() for name, p in single.named_parameters()}
    context = torch.multiprocessing.spawn(
        _worker, (str(tmp_path / "rendezvous"), wrapper, cell, backend, expected), nprocs=2, join=False
    )
    try:
        # True once both have ended well; raises with the traceback of one that has not.
        assert any(context.join(timeout=20) for _ in range(6)), "the processes did not end in two minutes"
    finally:
        for process in context.processes:
            process.kill()
