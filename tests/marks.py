"""Marks that several files of tests share."""

import pytest

#: Runs on Triton's kernels too, which the interpreter makes slow: for tests of small cases.
every_backend = pytest.mark.backends("reference", "cpu", "triton")
