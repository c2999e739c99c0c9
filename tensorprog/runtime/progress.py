"""A progress bar for long work, when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tensorprog.errors import InputError

__all__ = ["progress_bar"]


def progress_bar(show: bool) -> Callable[[Iterable[Any], int], Iterable[Any]]:
    """A function that wraps an iterable of known length, with a bar if `show` (needs the extra `progress`)."""
    if not show:
        return lambda items, total: items
    try:
        from tqdm import tqdm
    except ImportError:
        raise InputError("progress=True needs tqdm: pip install 'tensorprog[progress]'") from None
    return lambda items, total: tqdm(items, total=total, unit="tile", desc="kernel")
