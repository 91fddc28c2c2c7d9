"""Trains the character language model on several processes by DistributedDataParallel.

    torchrun --nproc-per-node 2 examples/train_ddp.py

Each process has its own part of every batch; torch averages the gradients. Nothing about it is special to this package: its
modules are torch modules like any other. On CPUs processes talk by gloo.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from char_language_model import CharModel, batches, load_text
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import rnnkernels


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cell", choices=("lstm", "gru"), default="lstm")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32, help="of all processes together")
    parser.add_argument("--length", type=int, default=64)
    options = parser.parse_args(arguments)
    if "RANK" not in os.environ:
        print("start it by torchrun: torchrun --nproc-per-node 2 examples/train_ddp.py", file=sys.stderr)
        return 2

    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    torch.manual_seed(rank)  # the initial weights are the first process's: DDP hands them out
    text, characters = load_text()
    rnn_class = {"lstm": rnnkernels.LSTM, "gru": rnnkernels.GRU}[options.cell]
    model = DistributedDataParallel(CharModel(rnn_class, len(characters), options.hidden_size))
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)

    for step, (own, following) in enumerate(itertools.islice(batches(text, options.length, options.batch_size), options.steps)):
        inputs, targets = (part.chunk(processes, dim=1)[rank] for part in (own, following))
        logits, _ = model(inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = loss.detach()
        dist.all_reduce(mean)
        if rank == 0 and step in (0, options.steps - 1):
            print(f"step {step + 1}: loss {mean.item() / processes:.3f}, the mean of {processes} processes", flush=True)

    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    everybodys = [torch.empty_like(weights) for _ in range(processes)]
    dist.all_gather(everybodys, weights)
    same = all(torch.equal(weights, other) for other in everybodys)
    if rank == 0:
        print(f"all processes have the same weights: {'yes' if same else 'NO'}", flush=True)
    dist.destroy_process_group()
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
