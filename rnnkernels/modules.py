r"""``LSTM`` and ``GRU``: torch.nn's modules over this package's kernels.

They take the arguments, hold the parameters, accept the inputs and raise the errors of :class:`torch.nn.LSTM` and
:class:`torch.nn.GRU`; a ``state_dict`` moves both ways. What differs:

* They derive from :class:`torch.nn.RNNBase`, so ``isinstance(module, torch.nn.LSTM)`` is False: ``torch.compile`` refuses
  subclasses of ``torch.nn.LSTM`` and ``torch.nn.GRU``.
* Every forward looks its weights up by name. There is no list of weights to go stale when a parameter is replaced,
  parametrized, pruned or swapped by ``torch.func.functional_call``.
* The kernels take the weights where they lie: :meth:`flatten_parameters` does nothing and there is never a warning about it.
* Backward works in eval mode, and so do double backward, ``torch.func`` transforms and ``torch.compile(fullgraph=True)``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import direct, functional
from .backends import Request
from .streaming import Stream


def current_weights(module: nn.Module, names: Sequence[str]) -> list[Tensor]:
    """The tensors that ``module`` holds under ``names`` now.

    A registered parameter is found without :meth:`torch.nn.Module.__getattr__`, which would cost more than the rest of a
    module's Python; a weight that something computes (a parametrization, a pruning mask, ...) is an attribute.
    """
    parameters = module._parameters
    return [parameters[name] if name in parameters else getattr(module, name) for name in names]


class _LayerStack(nn.RNNBase):
    """What LSTM and GRU share: parameters by name, the forms an input may take. Subclasses compute in :meth:`_compute`."""

    # --- forward ---------------------------------------------------------------------------------------------------------

    def forward(self, input: Tensor | PackedSequence, hx=None):
        """Compute the whole stack; shapes are in the class's description."""
        if not torch.compiler.is_compiling():
            result = direct.layers(self, input, hx)
            if result is not NotImplemented:
                return result
        if isinstance(input, PackedSequence):
            data, batch_sizes, sorted_indices, unsorted_indices = input
            if hx is not None:
                hx = self.permute_hidden(hx, sorted_indices)
            output, final = self._compute(data, hx, self.batch_first, batch_sizes)
            packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
            return packed, self.permute_hidden(final, unsorted_indices)
        dim = input.dim()
        if hx is not None and dim in (2, 3):
            self._check_hidden_dim(hx, dim)
        if dim == 3:
            return self._compute(input, hx, self.batch_first)
        if dim != 2:
            raise ValueError(f"{self.mode}: Expected input to be 2D or 3D, got {dim}D instead")
        if hx is not None:
            hx = self._each(hx, lambda state: state.unsqueeze(1))
        output, final = self._compute(input.unsqueeze(1), hx, batch_first=False)
        return output.squeeze(1), self._each(final, lambda state: state.squeeze(1))

    def stream(self, batch_size: int = 1, dtype: torch.dtype | None = None) -> Stream:
        """This stack fed one step at a time, for inference at the lowest latency: see :class:`~rnnkernels.streaming.Stream`.

        Args:
            batch_size: how many sequences are stepped together (N).
            dtype: what to keep the weight matrices in. ``torch.bfloat16`` halves the memory a step of a float32 module reads;
                inputs, states, biases, outputs and all maths stay float32. By default the module's own.

        Raises:
            ValueError: the module is bidirectional, or its weights cannot be kept in that dtype.
            RuntimeError: a weight is not on the CPU, or computed by a hook.
        """
        return Stream(self, batch_size, dtype)

    def permute_hidden(self, hx, permutation: Tensor | None):
        """States with their batch rows reordered."""
        if permutation is None:
            return hx
        return self._each(hx, lambda state: state.index_select(1, permutation))

    def batch_of(self, input: Tensor | PackedSequence) -> int:
        """The number of sequences in an input."""
        if isinstance(input, PackedSequence):
            return int(input.batch_sizes[0])
        return 1 if input.dim() == 2 else input.size(0 if self.batch_first else 1)

    def request(self, input: Tensor | PackedSequence | None = None) -> Request:
        """What a call with ``input`` would ask of a backend, for :func:`rnnkernels.explain`."""
        weights = current_weights(self, self._flat_weights_names)
        packed = isinstance(input, PackedSequence)
        data = input.data if packed else weights[0] if input is None else input
        return functional.request(
            self.mode.lower(),
            data,
            weights,
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            proj_size=self.proj_size,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            packed=packed,
        )

    def _compute(self, input: Tensor, hx, batch_first: bool, batch_sizes: Tensor | None = None):
        """The cell's function of :mod:`rnnkernels.functional`, given this module's weights and options."""
        raise NotImplementedError

    def _each(self, hx, function: Callable[[Tensor], Tensor]):
        """``function`` applied to every state of ``hx``."""
        raise NotImplementedError

    def _check_hidden_dim(self, hx, dim: int) -> None:
        """Refuse states that are batched when the input is not, and the other way round."""
        raise NotImplementedError

    # --- parameters ------------------------------------------------------------------------------------------------------
    #
    # RNNBase keeps a second list of its parameters, `_flat_weights`, and refreshes it when it notices a change. Here the list is
    # made anew from the names whenever somebody reads it, and what RNNBase does to maintain it is switched off.

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: Sequence[Tensor | None]) -> None:
        for name, own, new in zip(self._flat_weights_names, self._flat_weights, weights, strict=True):
            if new is not own:
                setattr(self, name, new)

    @property
    def _flat_weight_refs(self) -> list[weakref.ReferenceType[Tensor] | None]:
        return [None if weight is None else weakref.ref(weight) for weight in self._flat_weights]

    @_flat_weight_refs.setter
    def _flat_weight_refs(self, refs: Sequence[weakref.ReferenceType[Tensor] | None]) -> None:
        """RNNBase empties its references before it moves parameters; these are made when read, and need no emptying."""

    def _init_flat_weights(self) -> None:
        """Nothing to initialise: see :attr:`_flat_weights`."""

    def _weights_have_changed(self) -> bool:
        return False

    def flatten_parameters(self) -> None:
        """Do nothing: the kernels take the weights where they lie. Kept for code written for torch.nn."""

    def __setattr__(self, name: str, value: object) -> None:
        nn.Module.__setattr__(self, name, value)  # not RNNBase's, which writes to `_flat_weights` too

    def _replicate_for_data_parallel(self):
        return nn.Module._replicate_for_data_parallel(self)  # not RNNBase's, which copies `_flat_weights`

    # --- pickling --------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict:
        return self.__dict__.copy()

    def __setstate__(self, state: dict) -> None:
        """Restore a module pickled by this class, or from the attributes of any version of torch.nn's."""
        lists = ("_flat_weights", "_flat_weight_refs", "all_weights")
        super(nn.RNNBase, self).__setstate__({key: value for key, value in state.items() if key not in lists})
        self.__dict__.setdefault("proj_size", 0)  # modules from before torch 1.8
        self._all_weights = self._weight_names()
        self._flat_weights_names = [name for names in self._all_weights for name in names]

    def _weight_names(self) -> list[list[str]]:
        kinds = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * self.bias + ["weight_hr"] * (self.proj_size > 0)
        suffixes = ["", "_reverse"] if self.bidirectional else [""]
        return [[f"{kind}_l{layer}{suffix}" for kind in kinds] for layer in range(self.num_layers) for suffix in suffixes]


class LSTM(_LayerStack):
    r"""A stack of LSTM layers, in place of :class:`torch.nn.LSTM`.

    Every layer computes, step by step, equations L1-L8 of :mod:`rnnkernels.backends.reference`::

        i = s(W_ii x + b_ii + W_hi h' + b_hi)      input gate            (L1, L2)
        f = s(W_if x + b_if + W_hf h' + b_hf)      forget gate           (L1, L3)
        g = tanh(W_ig x + b_ig + W_hg h' + b_hg)   candidate             (L1, L4)
        o = s(W_io x + b_io + W_ho h' + b_ho)      output gate           (L1, L5)
        c = f * c' + i * g                         cell state            (L6)
        h = o * tanh(c)                            hidden state          (L7)
        r = W_hr h                                 in place of h, with a projection (L8)

    x is the step's input, h' and c' the states before the step, s the logistic function, * elementwise.

    Args:
        input_size: features of x (I).
        hidden_size: features of h and c (H).
        num_layers: layers stacked on each other (L).
        bias: whether there are b_ih and b_hh.
        batch_first: dense input and output are (N, T, .) and not (T, N, .); states are not affected.
        dropout: probability, in training, of zeroing an element of a layer's output before the next layer.
        bidirectional: also run each layer from the last step to the first (D = 2 directions, else 1).
        proj_size: if > 0, project h to this size (P; P = H without).
        device, dtype: of the parameters; float32, float64, float16 or bfloat16.

    Call: ``output, (h_n, c_n) = module(input, (h_0, c_0))``. States default to zeros; everything has the parameters' dtype.

    =========  =======================================================================================
    input      (T, N, I), (N, T, I) with ``batch_first``, (T, I) unbatched, or a PackedSequence
    h_0, h_n   (L*D, N, P), unbatched (L*D, P)
    c_0, c_n   (L*D, N, H), unbatched (L*D, H)
    output     (T, N, D*P), (N, T, D*P), (T, D*P) or a PackedSequence, as the input is
    =========  =======================================================================================

    Parameters, in this order for each layer k and then its reverse direction (suffix ``_reverse``): ``weight_ih_l{k}``
    (4H, I, or D*P above the first layer), ``weight_hh_l{k}`` (4H, P), ``bias_ih_l{k}``, ``bias_hh_l{k}`` (4H), ``weight_hr_l{k}``
    (P, H). Rows are stacked i, f, g, o. Drawn from U(-1/sqrt(H), 1/sqrt(H)), in this order.

    Raises:
        TypeError, ValueError: constructor arguments that :class:`torch.nn.LSTM` refuses, with its messages.
        ValueError: input of the wrong number of dimensions, or of another dtype than the parameters (except under autocast).
        RuntimeError: sizes that do not fit, tensors on different devices, a sequence of no steps.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__("LSTM", *args, **kwargs)

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """Shape of c_0 for this input."""
        layers, batch, _ = self.get_expected_hidden_size(input, batch_sizes)
        return layers, batch, self.hidden_size

    def check_forward_args(self, input: Tensor, hidden: tuple[Tensor, Tensor], batch_sizes: Tensor | None) -> None:
        """Raise what a call with these would raise: input (T, N, I) or packed (R, I), hidden = h_0, c_0."""
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes), self.get_expected_cell_size(input, batch_sizes)
        for i in range(2):
            self.check_hidden_size(hidden[i], expected[i], f"Expected hidden[{i}] size {{}}, got {{}}")

    def _compute(self, input, hx, batch_first, batch_sizes=None):
        return functional.lstm(
            input,
            hx,
            current_weights(self, self._flat_weights_names),
            num_layers=self.num_layers,
            has_biases=self.bias,
            has_projection=self.proj_size > 0,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            train=self.training,
            batch_first=batch_first,
            batch_sizes=batch_sizes,
        )

    def _each(self, hx, function):
        return function(hx[0]), function(hx[1])

    def _check_hidden_dim(self, hx, dim):
        if hx[0].dim() != dim or hx[1].dim() != dim:
            raise RuntimeError(
                f"For {'batched' if dim == 3 else 'unbatched'} {dim}-D input, hx and cx should also be {dim}-D "
                f"but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )


class GRU(_LayerStack):
    r"""A stack of GRU layers, in place of :class:`torch.nn.GRU`.

    Every layer computes, step by step, equations G1-G5 of :mod:`rnnkernels.backends.reference`::

        r = s(W_ir x + b_ir + W_hr h' + b_hr)      reset gate            (G1)
        z = s(W_iz x + b_iz + W_hz h' + b_hz)      update gate           (G2)
        q = W_hn h' + b_hn                         hidden half of n      (G3)
        n = tanh(W_in x + b_in + r * q)            candidate             (G4)
        h = (1 - z) * n + z * h'                   hidden state          (G5)

    x is the step's input, h' the state before the step, s the logistic function, * elementwise.

    Args:
        input_size: features of x (I).
        hidden_size: features of h (H).
        num_layers: layers stacked on each other (L).
        bias: whether there are b_ih and b_hh.
        batch_first: dense input and output are (N, T, .) and not (T, N, .); states are not affected.
        dropout: probability, in training, of zeroing an element of a layer's output before the next layer.
        bidirectional: also run each layer from the last step to the first (D = 2 directions, else 1).
        device, dtype: of the parameters; float32, float64, float16 or bfloat16.

    Call: ``output, h_n = module(input, h_0)``. The state defaults to zeros; everything has the parameters' dtype.

    =========  =======================================================================================
    input      (T, N, I), (N, T, I) with ``batch_first``, (T, I) unbatched, or a PackedSequence
    h_0, h_n   (L*D, N, H), unbatched (L*D, H)
    output     (T, N, D*H), (N, T, D*H), (T, D*H) or a PackedSequence, as the input is
    =========  =======================================================================================

    Parameters, in this order for each layer k and then its reverse direction (suffix ``_reverse``): ``weight_ih_l{k}``
    (3H, I, or D*H above the first layer), ``weight_hh_l{k}`` (3H, H), ``bias_ih_l{k}``, ``bias_hh_l{k}`` (3H). Rows are stacked
    r, z, n. Drawn from U(-1/sqrt(H), 1/sqrt(H)), in this order.

    Raises:
        TypeError, ValueError: constructor arguments that :class:`torch.nn.GRU` refuses, with its messages.
        ValueError: input of the wrong number of dimensions, or of another dtype than the parameters (except under autocast).
        RuntimeError: sizes that do not fit, tensors on different devices, a sequence of no steps.
    """

    def __init__(self, *args, **kwargs) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)
        if self.proj_size:  # the eighth positional argument
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")

    def _compute(self, input, hx, batch_first, batch_sizes=None):
        return functional.gru(
            input,
            hx,
            current_weights(self, self._flat_weights_names),
            num_layers=self.num_layers,
            has_biases=self.bias,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            train=self.training,
            batch_first=batch_first,
            batch_sizes=batch_sizes,
        )

    def _each(self, hx, function):
        return function(hx)

    def _check_hidden_dim(self, hx, dim):
        if hx.dim() != dim:
            raise RuntimeError(
                f"For {'batched' if dim == 3 else 'unbatched'} {dim}-D input, hx should also be {dim}-D "
                f"but got {hx.dim()}-D tensor"
            )
