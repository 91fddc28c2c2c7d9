"""Compile, and on request time, Triton kernels before the first training step needs them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from .backends import use_backend
from .modules import GRU, LSTM

#: Steps of the sequence a kernel is compiled with: any number but one, which takes another schedule.
_STEPS = 2


def triton_warmup(
    module: nn.Module,
    batch_sizes: Iterable[int],
    *,
    training: bool = True,
    packed: bool = False,
    tune: bool = False,
) -> None:
    """Compile the Triton kernels that the LSTM and GRU layers in ``module`` will run.

    One compilation serves every number of steps, and every batch that is given the same tiles. Triton keeps compiled kernels on
    disk, so a later process needs a fraction of the time. Parameters, their gradients, the module's mode and torch's random
    state are left as they are.

    Args:
        module: any module; its LSTM and GRU layers are those of this package that it contains, itself included.
        batch_sizes: numbers of sequences it will be called with.
        training: also compile what forward keeps for backward, and backward.
        packed: also compile for packed sequences.
        tune: time the candidates for each shape and keep the fastest on disk: seconds per shape, once per GPU.

    Raises:
        ValueError: a module with no LSTM or GRU of this package in it; a batch size below 1.
        UnsupportedRequest: the backend ``triton`` cannot serve a layer; the message says why.
    """
    layers = [m for m in module.modules() if isinstance(m, (LSTM, GRU))]
    if not layers:
        raise ValueError("triton_warmup() found no rnnkernels.LSTM or rnnkernels.GRU in the module")
    sizes = sorted(set(batch_sizes))
    if not sizes or sizes[0] < 1:
        raise ValueError(f"triton_warmup() needs batch sizes of at least 1, got {sizes}")
    from .backends.triton import tuning  # imports triton

    # Backward in this thread: use_backend and the wish to tune hold per thread.
    with use_backend("triton"), torch.autograd.set_multithreading_enabled(False), tuning.autotuning(tune):
        for layer in layers:
            for batch in sizes:
                _run(layer, batch, training, packed)


def _run(layer: LSTM | GRU, batch: int, training: bool, packed: bool) -> None:
    shape = (batch, _STEPS) if layer.batch_first else (_STEPS, batch)
    weight = layer.weight_ih_l0
    mode = layer.training
    layer.eval()  # dropout would draw random numbers
    try:
        for pack in (False, True)[: 1 + packed]:
            x = torch.zeros(*shape, layer.input_size, device=weight.device, dtype=weight.dtype, requires_grad=training)
            data = pack_padded_sequence(x, torch.full((batch,), _STEPS), layer.batch_first) if pack else x
            with torch.no_grad():
                layer(data)
            if training:
                with torch.enable_grad():
                    result = layer(data)[0]
                    output: Tensor = result.data if pack else result
                    torch.autograd.grad(output.sum(), x)
    finally:
        layer.train(mode)
