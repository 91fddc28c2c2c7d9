"""Fused LSTM and GRU kernels behind torch.nn's interface."""

from . import autograd, functional, ops
from .backends import Backend, Explanation, Request, UnsupportedRequest, choose, explain, use_backend
from .cells import GRUCell, LSTMCell
from .modules import GRU, LSTM

__all__ = [
    "GRU",
    "LSTM",
    "Backend",
    "Explanation",
    "GRUCell",
    "LSTMCell",
    "Request",
    "UnsupportedRequest",
    "autograd",
    "choose",
    "explain",
    "functional",
    "ops",
    "use_backend",
]
