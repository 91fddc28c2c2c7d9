"""Fused LSTM and GRU kernels behind torch.nn's interface."""
from . import functional, autograd, ops
from .backends import use_backend, explain, choose, Request, UnsupportedRequest
