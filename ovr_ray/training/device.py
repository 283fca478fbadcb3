"""The device of a process that trains or predicts, and what is set up in that process once."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Final

import torch


def set_up_process(cpus: float, gpus: float) -> torch.device:
    """Set up this process for the resources that it was given, and return the device to use.

    Parameters
    ----------
    cpus : float
        Torch uses this many threads, at least one.
    gpus : float
        Above 0, CUDA is used if torch sees a GPU, and of its memory this share at most, so that trials that share a
        GPU cannot take each other's. Apple's ``mps`` is used if there is one, whatever Ray assigned.

    Returns
    -------
    torch.device
    """
    keep_pages()
    torch.cuda.empty_cache()  # memory of the trial that used this process before; does nothing without a GPU
    torch.set_num_threads(max(1, int(cpus)))
    device = choose_device(gpus)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, gpus))
    return device


def choose_device(gpus: float) -> torch.device:
    """Return CUDA if a GPU was assigned and torch sees one, else Apple's ``mps`` if there is one, else the CPU."""
    if gpus and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


NO_MEMORY: Final = (
    "can't allocate memory",  # the CPU
    "out of memory",  # Apple's GPUs
    "ALLOC_FAILED",  # cuBLAS and cuDNN
    "CUBLAS_STATUS_NOT_INITIALIZED",  # cuBLAS found no memory for its own state
    "unable to find an engine",  # cuDNN found no algorithm whose workspace fits
)
"""Parts of the messages of errors that mean a lack of memory and are no ``OutOfMemoryError``."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether a GPU, or the machine, had too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)


def keep_pages() -> None:
    """Make glibc keep freed buffers: without this, training on the CPU is bound by page faults. Elsewhere do nothing.

    EfficientNet-Lite0 sees 1.5 to 1.9 times the images/s on 2 cores, for more resident memory (``mallopt(3)``). Free
    memory that was kept until now is returned first: the buffers of one trial do not fit another's, and would add up.
    """
    if sys.platform == "linux":
        glibc = ctypes.CDLL(None)
        mallopt = getattr(glibc, "mallopt", None)
        if mallopt:  # musl has none
            gc.collect()  # a network and its optimizer may refer to each other
            glibc.malloc_trim(0)
            trim_threshold, mmap_threshold = -1, -3
            mallopt(mmap_threshold, 1 << 30)
            mallopt(trim_threshold, (1 << 31) - 1)
