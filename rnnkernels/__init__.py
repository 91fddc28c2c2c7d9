"""Fused LSTM and GRU kernels behind torch.nn's interface."""

from . import autograd, functional, ops
from ._version import __version__
from .backends import Backend, Explanation, Request, UnsupportedRequest, choose, explain, use_backend
from .cells import GRUCell, LSTMCell
from .convert import replace_rnn_modules, restore_rnn_modules
from .modules import GRU, LSTM
from .streaming import Stream
from .warmup import triton_warmup

__all__ = [
    "GRU",
    "LSTM",
    "Backend",
    "Explanation",
    "GRUCell",
    "LSTMCell",
    "Request",
    "Stream",
    "UnsupportedRequest",
    "__version__",
    "autograd",
    "choose",
    "explain",
    "functional",
    "ops",
    "replace_rnn_modules",
    "restore_rnn_modules",
    "triton_warmup",
    "use_backend",
]
