"""Python's collector of cycles, kept to what is new while much is made that stays: expressions, programs, traced functions.

A full collection walks all objects there are, of JAX and SymPy alone so many that it takes as long as deriving a short kernel, and it comes
the more often the more is made. Those that were there before are set aside meanwhile (`gc.freeze`).
"""

from __future__ import annotations

import gc
import threading

__all__ = ["older_objects_aside"]

_LOCK = threading.Lock()
_asking = 0
_ours = False  # is what is set aside set aside by us?


class older_objects_aside:
    """While it is entered, in whatever thread, the collector looks at no objects that were there before. What a user has set aside stays so.

    >>> with older_objects_aside():
    ...     gc.get_freeze_count() > 0
    True
    """

    def __enter__(self) -> None:
        global _asking, _ours
        with _LOCK:
            if _asking == 0:
                _ours = gc.get_freeze_count() == 0
                if _ours:
                    gc.freeze()
            _asking += 1

    def __exit__(self, *error: object) -> None:
        global _asking
        with _LOCK:
            _asking -= 1
            if _asking == 0 and _ours:
                gc.unfreeze()
