"""Running a piece of Python in a process of its own, which may hang or crash without taking the tests along."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = str(Path(__file__).parent)


def python(code: str, *arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` with this folder importable. A timeout raises; the return code, a negative signal number, is the caller's."""
    path = os.pathsep.join(filter(None, (TESTS, os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def output_of(code: str, *arguments: str, timeout: float = 120, **environment: str) -> str:
    """The standard output of ``code``, which must end well."""
    result = python(code, *arguments, timeout=timeout, **environment)
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout
