"""Marks that several files of tests share."""

import pytest
import torch

#: Runs on Triton's kernels too, which the interpreter makes slow: for tests of small cases.
every_backend = pytest.mark.backends("reference", "cpu", "triton")

#: Whether torch.nn's LSTM layers work under autocast on this processor: oneDNN computes them, and where it has no bfloat16 they
#: raise, or with states of another dtype return float32. What they do where it has is then the expectation.
TORCH_LOWERS_LSTM = torch.ops.mkldnn._is_mkldnn_bf16_supported()
