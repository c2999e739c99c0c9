"""Python's collector of cycles, at rest while much is made that stays: expressions, programs, traced functions.

A full collection walks all objects there are, of JAX and SymPy alone so many that it takes as long as deriving a short kernel. It comes the
more often the more is made, and what is made here stays, so that it finds next to nothing.
"""

from __future__ import annotations

import gc
import threading
from contextlib import ContextDecorator

__all__ = ["collector_at_rest"]

_LOCK = threading.Lock()
_resting = 0  # how many ask for it
_was_at_work = False


class collector_at_rest(ContextDecorator):
    """While it is entered, in whatever thread, no cycles are looked for. A collector that the user has switched off stays off.

    >>> with collector_at_rest():
    ...     gc.isenabled()
    False
    >>> gc.isenabled()
    True
    """

    def __enter__(self) -> None:
        global _resting, _was_at_work
        with _LOCK:
            if _resting == 0:
                _was_at_work = gc.isenabled()
                gc.disable()
            _resting += 1

    def __exit__(self, *error: object) -> None:
        global _resting
        with _LOCK:
            _resting -= 1
            if _resting == 0 and _was_at_work:
                gc.enable()
