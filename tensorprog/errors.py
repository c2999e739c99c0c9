"""Every exception of tensorprog, and how it reads.

A message says what was asked, shows where (the user's own source line when there is one), gives the
reason, and ends with the mend. Limits of a request (`UserError` and below) and bugs of ours
(`InternalError`) are different classes, so that neither can be mistaken for the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = [
    "ArchiveError",
    "InputError",
    "InternalError",
    "LawWarning",
    "NetworkError",
    "ProgramError",
    "TensorprogError",
    "UnsupportedError",
    "UserError",
    "VerificationError",
]


class TensorprogError(Exception):
    """Base class of everything tensorprog raises on purpose."""


class UserError(TensorprogError, ValueError):
    """The request cannot be met; the message says why and what to do."""


class InputError(UserError):
    """An argument of a public call is wrong: its shape, dtype, value or name."""


class NetworkError(UserError):
    """The function that was given is not a network tensorprog can take a limit of."""


class UnsupportedError(NetworkError):
    """The network uses an operation that the master theorem, or this version, does not cover.

    Its message, or a function that makes it: what each rule answered can take seconds to say, and most that ask go on elsewhere.
    """

    def __init__(self, message: str | Callable[[], str]):
        super().__init__(message)

    def __str__(self) -> str:
        if not isinstance(self.args[0], str):
            self.args = (self.args[0](),)
        return str(self.args[0])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process the message goes, not what makes it."""
        return type(self), (str(self),)


class LawWarning(UserWarning):
    """The limit depends on the law of a model's initial entries, and was taken with Gaussian ones."""


class ProgramError(UserError):
    """A tensor program, as text or from the builder, is malformed."""


class ArchiveError(UserError):
    """A saved kernel cannot be read: truncated, altered, foreign or too new."""


class InternalError(TensorprogError):
    """A bug in tensorprog: please report it with the program that provoked it."""


class VerificationError(InternalError):
    """A pass made a malformed program."""


def explain(what: str, *, reason: str, mend: str, where: str | None = None) -> str:
    """Render one message in the form every error has: what, where, why, what to do."""
    lines = [what]
    if where:
        lines.append(f"  at {where}")
    lines.append(f"  reason: {reason}")
    lines.append(f"  to mend: {mend}")
    return "\n".join(lines)
