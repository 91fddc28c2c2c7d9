"""The native operator libraries: whether they are there."""

from __future__ import annotations

from .. import _library

_status = _library.load()


def missing() -> str | None:
    """Why the CPU library's operators cannot be called, or None if they can."""
    return None if _status.available else _status.reason
