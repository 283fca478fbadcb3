"""A progress bar for a pass over many images."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


@contextmanager
def progress(images: int, done: int = 0, label: str = "images") -> Iterator[Callable[[int], None]]:
    """Show a progress bar if stderr is a terminal; yield a function that takes the number of newly finished images."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(f"{label}  {{task.fields[speed]}}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=images, completed=done, speed="")
        began = time.monotonic()

        def advance(more: int) -> None:
            bar.advance(task, more)
            count = bar.tasks[0].completed
            rate = (count - done) / (time.monotonic() - began)
            left = timedelta(seconds=round((images - count) / rate))
            bar.update(task, speed=f"{rate:.1f} images/s, {left} left", refresh=True)

        yield advance
