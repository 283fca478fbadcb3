"""Errors that are reported in words to the person who can fix them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One mistake: where it is, what is wrong, what to do."""

    where: str
    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}" + (f"\n    -> {self.remedy}" if self.remedy else "")


class OvrRayError(Exception):
    """Base of the errors that are shown to the user without a stack trace."""

    exit_code = 1


class BadInput(OvrRayError, ValueError):
    """The recipe, the labels, the images or an argument are wrong. Carries every fault found."""

    exit_code = 2

    def __init__(self, faults: Fault | Iterable[Fault]) -> None:
        self.faults = [faults] if isinstance(faults, Fault) else list(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))

    def __reduce__(self) -> tuple[type[BadInput], tuple[list[Fault]]]:
        return type(self), (self.faults,)  # pickled when a worker process raises it


class RunFailed(OvrRayError):
    """The input was valid, but the work failed."""


class Interrupted(OvrRayError):
    """The user stopped the work; the same command resumes it."""

    exit_code = 130
