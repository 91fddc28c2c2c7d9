r"""One step at a time, as fast as a call can be: ``stream = rnn.stream(batch_size=1)``, then ``y = stream.step(x)``.

A :class:`Stream` packs a module's weights once, keeps the states of all layers between calls and writes each step's output to
the same tensor. It is for inference: no gradient is recorded and dropout is off, whatever mode the module is in.

It computes with the C++ kernels of ``rnnkernels._C``, :attr:`Stream.engine` "native". Where that module is missing the package's
functions compute the same, "torch", many times slower; :attr:`Stream.reason` says why.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from .backends import FLOAT_DTYPES


class Stream:
    r"""A stack of LSTM or GRU layers that is fed one step after the other. Made by ``rnn.stream(...)``.

    Attributes: ``batch_size`` (N), ``input_size`` (I), ``hidden_size`` (H), ``output_size`` (P; H without projection),
    ``num_layers`` (L); ``dtype`` of inputs and outputs, the module's; ``weight_dtype``, which the matrices are kept in;
    ``state_dtype``, float64 for a float64 module and otherwise float32; ``engine``, ``reason``: see the module's description.

    **Changed weights.** Every step asks first whether the module's parameters are still the tensors they were, at the same
    memory, with no write counted by torch, and packs them again if not: steps after ``optimizer.step()``, ``load_state_dict()``,
    an assignment to a parameter or a write under ``no_grad`` use the new weights; states stay. A write that torch does not count
    (through ``parameter.data``, a NumPy array or another alias; to a tensor made in inference mode) needs :meth:`refresh`.
    What parametrizations compute is computed when weights are packed.

    **Threads.** A stream serves one thread at a time. Using it from two at once gives every step to one of them whole, or raises
    RuntimeError; streams of their own run side by side.
    """

    def __init__(self, module: nn.RNNBase, batch_size: int = 1, dtype: torch.dtype | None = None) -> None:
        weights = _weights(module)
        if module.bidirectional:
            raise ValueError("a bidirectional module cannot be streamed: its reverse direction begins with the last step")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int):
            raise TypeError(f"batch_size must be an int, got {type(batch_size).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.module = module
        self.batch_size, self.num_layers = batch_size, module.num_layers
        self.input_size, self.hidden_size = module.input_size, module.hidden_size
        self.output_size = module.proj_size or module.hidden_size
        self.dtype = weights[0].dtype
        self.state_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.weight_dtype = _weight_dtype(self.dtype, dtype)
        self._lstm = module.mode == "LSTM"
        self.engine, self.reason, self._session = self._open_session()
        self._step = self._session.step
        self.refresh()

    # --- stepping --------------------------------------------------------------------------------------------------------

    def step(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Feed one step and return its output.

        Args:
            x: (N, I) or, with a batch of one, (I,), of :attr:`dtype`, on the CPU; rows may lie anywhere, features side by side.
            out: where to write the output: (N, P), or (P,) with a batch of one, contiguous. By default the stream's own
                buffer, **which the next step overwrites**: ``clone()`` what is to be kept.

        Returns:
            The last layer's output: ``out``, or the buffer as (N, P), or (P,) if x was (I,).

        Raises:
            TypeError, ValueError, RuntimeError: x or out is not such a tensor, or requires a gradient while gradients are being
                recorded; the module's weights no longer fit.
        """
        return self._step(x, out)

    # --- states ----------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> tuple[Tensor, Tensor] | Tensor:
        """(h, c), or h for a GRU: copies of the states of all layers, shaped (L, N, P) and (L, N, H) as ``h_n`` and ``c_n`` of
        torch.nn, in :attr:`state_dtype`, so that setting them again loses nothing. Set it to tensors of that dtype or of
        :attr:`dtype`, or to None for zeros."""
        states = self._empty_states()
        self._session.read_state(*states)
        return states if self._lstm else states[0]

    @state.setter
    def state(self, value: Sequence[Tensor] | Tensor | None) -> None:
        if value is None:
            return self.reset()
        own = self._empty_states()[: 2 if self._lstm else 1]
        given = tuple(value) if self._lstm else (value,)
        if len(given) != len(own):
            raise RuntimeError(f"an LSTM's state is (h, c), got {len(given)} tensors")
        for name, state, target in zip(("h", "c"), given, own, strict=False):
            if not isinstance(state, Tensor):
                raise TypeError(f"{name} must be a Tensor, got {type(state).__name__}")
            if state.shape != target.shape:
                raise RuntimeError(f"Expected {name} size {tuple(target.shape)}, got {list(state.shape)}")
            if state.dtype not in (self.dtype, self.state_dtype):
                raise ValueError(f"{name} must be {self.state_dtype} or {self.dtype}, got {state.dtype}")
            if state.device.type != "cpu":
                raise RuntimeError(f"{name} must be on the CPU, got {state.device}")
            target.copy_(state.detach())
        self._session.write_state(own[0], own[1] if self._lstm else None)

    def reset(self, rows: int | Sequence[int] | Tensor | None = None) -> None:
        """Zero the states: of all batch rows, or of those given, by index or by a mask (N,) of bools."""
        for row in self._rows(rows):
            self._session.reset(row)

    def refresh(self) -> None:
        """Pack the module's weights again; states stay. Needed after writes that torch does not count: see the class."""
        module = self.module
        weights = _weights(module)
        if weights[0].dtype != self.dtype:
            raise RuntimeError(f"the module is {weights[0].dtype} now and this stream {self.dtype}: make a new stream")
        per_layer = len(weights) // self.num_layers
        self._check_shapes(weights)
        # Watched first: a write from another thread while packing is then seen by the next step.
        self._session.watch(_watched(module))
        try:
            for layer in range(self.num_layers):
                own = weights[layer * per_layer : (layer + 1) * per_layer]
                self._session.load_weights(layer, [w.detach().contiguous() for w in own], module.bias)
        except BaseException:
            self._session.watch([({}, "", module)])  # never as it was: the next step comes here again
            raise

    def __repr__(self) -> str:
        size = f"{self.input_size}, {self.hidden_size}" + (f", proj_size={self.output_size}" * bool(self.module.proj_size))
        kept = f", weights in {_name(self.weight_dtype)}" if self.weight_dtype != self.dtype else ""
        engine = self.engine if self.reason is None else f"{self.engine}: {self.reason}"
        return (
            f"Stream({self.module.mode}({size}, num_layers={self.num_layers}), batch_size={self.batch_size}, "
            f"{_name(self.dtype)}{kept}, engine={engine})"
        )

    def __reduce_ex__(self, protocol):
        raise TypeError(
            "a stream cannot be pickled or copied: make one from the module (or a copy of it) with stream(), and set its state"
        )

    # --- details ---------------------------------------------------------------------------------------------------------

    def _open_session(self) -> tuple[str, str | None, Any]:
        # The session must not keep this object alive: it could not be collected, being no container to Python.
        this = weakref.ref(self)
        output = torch.empty(self.batch_size, self.output_size, dtype=self.dtype)
        options = dict(
            lstm=self._lstm,
            dtype=_name(self.dtype),
            bfloat16_weights=self.weight_dtype == torch.bfloat16,
            batch=self.batch_size,
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            state_size=self.output_size,
            layers=self.num_layers,
            has_projection=self.module.proj_size > 0,
            output=output,
            row=output[0],
            refuse_input=_refusal("x", self.batch_size, self.input_size, self.dtype, contiguous=False),
            refuse_output=_refusal("out", self.batch_size, self.output_size, self.dtype, contiguous=True),
            weights_changed=lambda: this().refresh(),
        )
        session, reason = _native_session()
        return ("native", None, session(**options)) if reason is None else ("torch", reason, _TorchSession(**options))

    def _check_shapes(self, weights: list[Tensor]) -> None:
        gates = (4 if self._lstm else 3) * self.hidden_size
        for name, weight in zip(self.module._flat_weights_names, weights, strict=True):
            kind, layer = name.rsplit("_l", 1)
            width = self.input_size if layer == "0" else self.output_size
            shapes = {"weight_ih": (gates, width), "weight_hh": (gates, self.output_size)}
            shapes["weight_hr"] = (self.output_size, self.hidden_size)
            expected = shapes.get(kind, (gates,))
            if tuple(weight.shape) != expected:
                raise RuntimeError(f"{name} must have shape {expected}, got {list(weight.shape)}")

    def _empty_states(self) -> tuple[Tensor, Tensor | None]:
        h = torch.empty(self.num_layers, self.batch_size, self.output_size, dtype=self.state_dtype)
        if not self._lstm:
            return h, None
        return h, torch.empty(self.num_layers, self.batch_size, self.hidden_size, dtype=self.state_dtype)

    def _rows(self, rows: int | Sequence[int] | Tensor | None) -> list[int]:
        if rows is None:
            return list(range(self.batch_size))
        indices = torch.as_tensor(rows)
        if indices.dtype == torch.bool:
            if indices.shape != (self.batch_size,):
                raise IndexError(f"a mask of rows must have shape ({self.batch_size},), got {list(indices.shape)}")
            indices = indices.nonzero()
        elif indices.numel() == 0:
            return []
        elif indices.is_floating_point() or indices.is_complex():
            raise TypeError(f"rows must be integers or bools, got {indices.dtype}")
        chosen = indices.flatten().tolist()
        for row in chosen:
            if not -self.batch_size <= row < self.batch_size:
                raise IndexError(f"row {row} is out of range for a batch of {self.batch_size}")
        return [row % self.batch_size for row in chosen]


def _native_session() -> tuple[Any, str | None]:
    """The class that computes, and why there is none."""
    again = "install the package again, with a C++ compiler at hand"
    try:
        module = importlib.import_module("rnnkernels._C")
    except ImportError as error:
        return None, f"the extension module rnnkernels._C is missing ({error}); {again}"
    if not hasattr(module, "StreamSession"):
        return None, f"the extension module rnnkernels._C was built before there were streams; {again}"
    return module.StreamSession, None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _weight_dtype(own: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    if wanted is None or wanted == own:
        return own
    if own == torch.float32 and wanted == torch.bfloat16:
        return wanted
    raise ValueError(
        f"weights of a {own} module can be kept in {own}" + (" or torch.bfloat16" * (own == torch.float32)) + f", not {wanted}"
    )


def _weights(module: nn.RNNBase) -> list[Tensor]:
    """The module's weights, layer by layer, as they are now; raises for those that cannot be streamed."""
    parametrized = getattr(module, "parametrizations", {})
    weights = []
    with torch.no_grad():
        for name in module._flat_weights_names:
            weight = module._parameters.get(name)
            if weight is None:
                weight = getattr(module, name, None)
                if not isinstance(weight, Tensor):
                    raise TypeError(f"expected a Tensor for every weight, but {name} is {type(weight).__name__}")
                if name not in parametrized:
                    raise RuntimeError(
                        f"{name} is no parameter: a hook that a stream does not run may compute it before each forward "
                        "(torch.nn.utils.prune, weight_norm, spectral_norm). Make it permanent, or use a parametrization"
                    )
            weights.append(weight)
    for name, weight in zip(module._flat_weights_names, weights, strict=True):
        if type(weight) not in (Tensor, nn.Parameter):
            raise TypeError(f"a stream needs plain tensors, and {name} is {type(weight).__name__}")
        if weight.device.type != "cpu":
            raise RuntimeError(f"a stream computes on the CPU, and {name} is on {weight.device}")
        if weight.dtype not in FLOAT_DTYPES or weight.dtype != weights[0].dtype:
            raise ValueError(f"a stream needs weights of one floating dtype, and {name} is {weight.dtype}")
        if weight.is_neg():
            raise RuntimeError(f"{name} is a view whose memory holds the negated values: resolve_neg() it first")
    return weights


def _watched(module: nn.Module) -> list[tuple[dict[str, Any], str, Any]]:
    """(dictionary, key, value) of everything the weights depend on: parameters and buffers, and which modules hold them."""
    entries: list[tuple[dict[str, Any], str, Any]] = []
    for part in module.modules():
        for held in (part._parameters, part._buffers, part._modules):
            entries += [(held, key, value) for key, value in held.items() if value is not None]
    return entries


def _refusal(what: str, batch: int, width: int, dtype: torch.dtype, contiguous: bool) -> Callable[[object], None]:
    """A function that raises what makes an object unfit as (batch, width), or (width,) for a batch of one."""

    def refuse(tensor: object) -> None:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{what} must be a Tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or type(tensor) not in (Tensor, nn.Parameter):
            raise TypeError(f"{what} must be a plain dense tensor, got {type(tensor).__name__} of layout {tensor.layout}")
        if tensor.device.type != "cpu":
            raise RuntimeError(f"{what} must be on the CPU, where the stream is, got {tensor.device}")
        if tensor.dtype != dtype:
            raise ValueError(f"{what} must have the module's dtype {dtype}, got {tensor.dtype}")
        if tuple(tensor.shape) != (batch, width) and (batch > 1 or tuple(tensor.shape) != (width,)):
            expected = f"({batch}, {width})" + (f" or ({width},)" if batch == 1 else "")
            raise RuntimeError(f"{what} must have shape {expected}, got {list(tensor.shape)}")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(f"{what} requires a gradient, which a stream would cut: detach it, or step under torch.no_grad()")
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError("a stream has no rule for torch.func transforms")
        if contiguous and not tensor.is_contiguous():
            raise RuntimeError(f"{what} must be contiguous")
        if tensor.stride(-1) != 1:
            raise RuntimeError(f"the features of {what} must lie side by side: stride(-1) is {tensor.stride(-1)}")
        if tensor.is_neg():
            raise RuntimeError(f"{what} is a view whose memory holds the negated values: resolve_neg() it first")
        if tensor._is_zerotensor():
            raise RuntimeError(f"{what} is one of torch's tensors of zeros that have no memory: clone() it first")

    return refuse


class _TorchSession:
    """What ``_C.StreamSession`` does, in torch: float32 (float64) maths and states, matrices rounded to how they are kept."""

    def __init__(
        self, *, lstm, dtype, bfloat16_weights, batch, layers, state_size, hidden_size, has_projection, **options
    ) -> None:
        self._cell, self._dtype = "lstm" if lstm else "gru", getattr(torch, dtype)
        self._compute_dtype = torch.float64 if self._dtype == torch.float64 else torch.float32
        self._bfloat16_weights, self._has_projection = bfloat16_weights, has_projection
        widths = (state_size, hidden_size) if lstm else (hidden_size,)
        self._states = [torch.zeros(layers, batch, width, dtype=self._compute_dtype) for width in widths]
        self._refuse_input, self._refuse_output = options["refuse_input"], options["refuse_output"]
        self._output, self._row, self._weights_changed = options["output"], options["row"], options["weights_changed"]
        self._weights: list[list[Tensor]] = [[] for _ in range(layers)]
        self._watched: list[tuple[dict[str, Any], str, Any, Any]] = []

    def load_weights(self, layer: int, weights: list[Tensor], has_biases: bool) -> None:
        kept = [w.bfloat16() if self._bfloat16_weights and w.dim() == 2 else w for w in weights]
        self._weights[layer], self._has_biases = [w.to(self._compute_dtype, copy=True) for w in kept], has_biases

    def watch(self, entries: list[tuple[dict[str, Any], str, Any]]) -> None:
        self._watched = [(*entry, self._mark(entry[2])) for entry in entries]

    def weights_are_current(self) -> bool:
        return all(held.get(key) is value and self._mark(value) == mark for held, key, value, mark in self._watched)

    @staticmethod
    def _mark(value: object) -> tuple[int, int] | None:
        if not isinstance(value, Tensor):
            return None
        return value.data_ptr(), 0 if value.is_inference() else value._version

    def step(self, x: Tensor, out: Tensor | None) -> Tensor:
        if not self.weights_are_current():
            self._weights_changed()
        self._refuse_input(x)
        output = out if out is not None else self._row if x.dim() == 1 else self._output
        self._refuse_output(output)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            input = x.to(self._compute_dtype).view(1, -1, x.size(-1))
            weights = [w for own in self._weights for w in own]
            options = {"num_layers": len(self._weights), "has_biases": self._has_biases}
            if self._cell == "lstm":
                result, states = functional.lstm(input, self._states, weights, has_projection=self._has_projection, **options)
            else:
                result, *states = functional.gru(input, self._states[0], weights, **options)
            self._states = list(states)
            output.view(-1, output.size(-1)).copy_(result[0])
        return output

    def read_state(self, *targets: Tensor | None) -> None:
        for target, state in zip(targets, self._states, strict=False):
            target.copy_(state)

    def write_state(self, *sources: Tensor | None) -> None:
        self._states = [source.clone() for source in sources if source is not None]

    def reset(self, row: int) -> None:
        for state in self._states:
            state[:, row] = 0
