"""How far a pass over many images is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


@contextmanager
def progress(images: int, done: int = 0, what: str = "images") -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere: gives the function that is told how many images more are done."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(f"{what}  {{task.fields[told]}}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=images, completed=done, told="")
        began = time.monotonic()

        def advance(more: int) -> None:
            bar.advance(task, more)
            count = bar.tasks[0].completed
            rate = (count - done) / (time.monotonic() - began)
            left = timedelta(seconds=round((images - count) / rate))
            bar.update(task, told=f"{rate:.1f} images/s, {left} left", refresh=True)

        yield advance
