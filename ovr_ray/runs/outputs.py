"""Files that verbs write: their names, and that one is replaced only if this program wrote it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import IO, Final, Literal, assert_never

import pyarrow.parquet as pq
from upath import UPath

from ovr_ray.errors import BadInput, Fault
from ovr_ray.runs.records import WINNERS, Metrics, WinnerRecord
from ovr_ray.storage import write_whole

METADATA: Final = "ovr_ray.json"
"""Name of the extra file inside ``joint.pt`` and ``joint.pt2``, and of the property of ``joint.onnx``."""

SOFTWARE: Final = "ovr-ray"
"""Text of the chunk ``Software`` of our PNGs."""

PAGE_MARK: Final = b"<dt>data fingerprint</dt>"
"""Element that only our pages have."""

LONGEST_HEADER: Final = 1 << 20
"""Bytes of a CSV file that are read for its first line."""

Kind = Literal["model", "winners", "metrics", "predictions", "picture", "report"]
"""What a file holds."""


def joint_model_in(folder: UPath) -> UPath:
    """Return the path of the joint model in a folder."""
    return folder / "joint.pt"


def beside(model: UPath, ending: str) -> UPath:
    """Return the path of a file that belongs to a joint model: the model's name without ``.pt``, then ``ending``."""
    return model.with_name(model.name.removesuffix(".pt") + ending)


def winners_beside(model: UPath) -> UPath:
    """Return the path of the winners beside a joint model: ``winners.json``; of ``x.pt``, ``x.winners.json``."""
    return _named_after(model, "winners.json")


def write_winners(model: UPath, winners: Mapping[str, WinnerRecord]) -> None:
    """Write ``winners.json`` beside a joint model."""
    content = WINNERS.dump_json(dict(winners), indent=1, by_alias=True, exclude_unset=True)
    write_whole(winners_beside(model), content)


def metrics_beside(model: UPath) -> UPath:
    """Return the path of the metrics beside a joint model: ``metrics.json``; of ``x.pt``, ``x.metrics.json``."""
    return _named_after(model, "metrics.json")


def predictions_beside(metrics: UPath) -> UPath:
    """Return the path of every answer that metrics are computed from: ``predictions.csv`` beside ``metrics.json``.

    Beside ``x.metrics.json`` or ``x.json`` it is ``x.predictions.csv``.
    """
    if metrics.name == "metrics.json":
        return metrics.with_name("predictions.csv")
    return metrics.with_name(f"{metrics.name.removesuffix('.json').removesuffix('.metrics')}.predictions.csv")


def _named_after(model: UPath, name: str) -> UPath:
    return model.with_name(name) if model == joint_model_in(model.parent) else beside(model, f".{name}")


def refuse_foreign(outputs: Mapping[UPath, Kind]) -> None:
    """Find out, before any work, whether files may be written.

    Parameters
    ----------
    outputs : mapping of UPath to Kind
        File that is going to be written -> what it will hold.

    Raises
    ------
    BadInput
        For every file that is there, is not empty, and does not hold what this program writes there.
    """
    if faults := [fault for file, kind in outputs.items() if (fault := _fault(file, kind))]:
        raise BadInput(faults)


def _fault(file: UPath, kind: Kind) -> Fault | None:
    try:
        with file.open("rb") as opened:
            if not opened.read(1):
                return None
            opened.seek(0)
            if _is_ours(opened, kind):
                return None
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        return Fault(str(file), "is a folder, and would have to be a file", "give another --output")
    remedy = "move it away, or give another --output"
    return Fault(str(file), f"is there already, and is no file of {kind} that ovr-ray wrote", remedy)


def _is_ours(opened: IO[bytes], kind: Kind) -> bool:
    try:
        match kind:
            case "model":
                return _is_model(opened)
            case "winners":
                return bool(WINNERS.validate_json(opened.read()))
            case "metrics":
                return bool(Metrics.from_json(opened.read()))
            case "predictions":
                columns = _columns(opened)
                is_answered = any(name.endswith("_probability") for name in columns)
                return columns[0] == "filename" and "error" in columns and is_answered
            case "picture":
                return f"Software\0{SOFTWARE}".encode() in opened.read(1024)
            case "report":
                return PAGE_MARK in opened.read()
            case _:
                assert_never(kind)
    except (ValueError, zipfile.BadZipFile):  # of pydantic, pyarrow and decode
        return False


def _is_model(opened: IO[bytes]) -> bool:
    """Return whether an archive of torch's, or a file of ONNX, has our metadata."""
    if zipfile.is_zipfile(opened):
        return any(name.endswith(f"/extra/{METADATA}") for name in zipfile.ZipFile(opened).namelist())
    opened.seek(0)
    content = opened.read()
    # protobuf: the tag of ir_version comes first; a property's key has tag and length in front of it
    return content.startswith(b"\x08") and b"\x0a%c%s" % (len(METADATA), METADATA.encode()) in content


def _columns(opened: IO[bytes]) -> list[str]:
    """Return the columns of a table, Parquet or CSV."""
    is_parquet = opened.read(4) == b"PAR1"
    opened.seek(0)
    if is_parquet:
        return pq.read_schema(opened).names
    return opened.read(LONGEST_HEADER).partition(b"\n")[0].decode().rstrip().split(";")
