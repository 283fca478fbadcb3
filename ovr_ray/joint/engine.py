"""What answers with a joint model's file: torch, or ONNX Runtime on CPUs if the model was also written as ONNX."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.joint.metadata import JointMetadata
from ovr_ray.runs import METADATA, beside
from ovr_ray.storage import read_whole, storage_errors

ONNX: Final = ".onnx"
"""Suffix of the files that ONNX Runtime reads; every other file is TorchScript."""


class Engine(Protocol):
    """A joint model that was loaded to answer."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 (N, labels), of images as training stores them: uint8 (N, C, S, S), N >= 1."""
        ...


@dataclass(frozen=True)
class ModelFiles:
    """The files of one joint model.

    Attributes
    ----------
    file : str
        Path or URI of the file that the user named.
    on_cpu : str
        Path or URI of the file that answers on CPUs.
    digest : str
        SHA-256 of the content of ``file``, in hexadecimal.
    """

    file: str
    on_cpu: str
    digest: str

    @classmethod
    def of(cls, file: UPath, digest: str) -> ModelFiles:
        """Look for an ONNX file beside a TorchScript file; it answers on CPUs if both were written together."""
        twin, is_paired = beside(file, ONNX), False
        with suppress(*storage_errors(), BadInput):  # there is none, or it is another program's
            is_paired = _onnx_metadata(read_whole(twin), twin).torchscript == digest
        return cls(str(file), str(twin if is_paired else file), digest)

    def engine(self, device: torch.device, threads: int) -> Engine:
        """Load the model for a device; on a CPU, it answers with this many threads."""
        file = UPath(self.on_cpu if device.type == "cpu" else self.file)
        if file.suffix == ONNX:
            return OnnxRuntime(file.read_bytes(), threads)
        return TorchScript(file.read_bytes(), device)


class TorchScript:
    """The :class:`Engine` of TorchScript files; on a CPU, torch has as many threads as the process."""

    def __init__(self, content: bytes, device: torch.device) -> None:
        self._model, _ = load_torchscript(content, device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._model(torch.from_numpy(images).to(self._device)).cpu().numpy()


class OnnxRuntime:
    """The :class:`Engine` of ONNX files, on the CPU."""

    def __init__(self, content: bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # threads that spin save 5 ms of a single image, but beside other programs they take 1.1 to 1.5 times the time
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._session.run(None, {"images": images})[0]


def read_metadata(content: bytes, file: UPath) -> JointMetadata:
    """Return what a joint model's file says of itself; raise :class:`BadInput` if it is no joint model."""
    if file.suffix == ONNX:
        return _onnx_metadata(content, file)
    return load_torchscript(content, file=str(file))[1]


def load_torchscript(
    content: bytes, device: torch.device | str = "cpu", file: str = "the model's file"
) -> tuple[torch.jit.ScriptModule, JointMetadata]:
    """Return the joint model of a file's content, and its metadata; ``file`` names it in an error.

    Only load files that you trust: TorchScript runs no Python, but it can call operators that write files.

    Raises
    ------
    BadInput
        If the content is no joint model.
    """
    extra = {METADATA: ""}
    try:
        with deprecation_known():
            model = torch.jit.load(io.BytesIO(content), map_location=device, _extra_files=extra)
        return model, JointMetadata.from_json(extra[METADATA])
    except (RuntimeError, ValueError) as error:
        raise _no_joint_model(file, error) from None


def _onnx_metadata(content: bytes, file: UPath) -> JointMetadata:
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    try:
        properties = {found.key: found.value for found in ModelProto.FromString(content).metadata_props}
        return JointMetadata.from_json(properties.get(METADATA, ""))
    except (DecodeError, ValueError) as error:
        raise _no_joint_model(str(file), error) from None


def _no_joint_model(file: str, error: Exception) -> BadInput:
    problem = f"is not a joint model: {str(error).splitlines()[0]}"
    return BadInput(Fault(file, problem, "ovr-ray combine writes one"))


@contextmanager
def deprecation_known() -> Iterator[None]:
    """Silence torch's warnings within this block that TorchScript is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        yield
