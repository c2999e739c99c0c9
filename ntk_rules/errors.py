"""The exceptions of the expectation engine."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Declined", "NoRule"]


class _Explained(Exception):
    """Its message, or a function that makes it: what sampling would reach takes a compilation to say, and most who ask go on elsewhere."""

    def __init__(self, message: str | Callable[[], str]):
        super().__init__(message)
        self._message = message

    def __str__(self) -> str:
        if not isinstance(self._message, str):
            self._message = self._message()
        return self._message


class Declined(_Explained):
    """A tier does not answer; the message says why."""


class NoRule(_Explained, ValueError):
    """No tier can give the expectation to the tolerance asked for; the message says what each tier
    answered.
    """
