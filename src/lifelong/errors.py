"""The few kinds of error that a user can cause; the command line turns each into one line and an exit status."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LifelongError(Exception):
    """Something that the user can put right; the message is one line that names what, where and how."""


class InputError(LifelongError):
    """An argument, setting, file or data set is not what was expected."""


class DivergedError(LifelongError):
    """Training produced a loss that is not a finite number."""


class StateError(LifelongError):
    """Something saved on disk is missing, damaged, or belongs to another run."""


def closest(name: str, names: Iterable[str]) -> str:
    """Return `", did you mean 'X'?"` for the name most like `name`, or an empty string when none is near."""
    lowered = {candidate.lower(): candidate for candidate in names}
    matches = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.6)
    return f", did you mean {lowered[matches[0]]!r}?" if matches else ""


def unknown(kind: str, name: str, names: Iterable[str]) -> InputError:
    """Return the error for a `name` that is none of `names`, with the closest one and the whole list."""
    known = sorted(names)
    return InputError(f"unknown {kind} {name!r}{closest(name, known) or ':'} known are {', '.join(known)}")
