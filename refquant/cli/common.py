"""What commands share: arguments that several take, and files that are whole or not there."""

import os
import re
import tempfile
from pathlib import Path

from ..errors import ArgumentError, FileError, complaint
from ..quant.granularity import Granularity, PerChannel, PerGroup, PerTensor

__all__ = ["granularity", "ready", "write"]


def granularity(text: str) -> Granularity:
    """`channel`, `tensor` or `group:N` as the granularity of weights."""
    if text in ("channel", "tensor"):
        return PerChannel(0) if text == "channel" else PerTensor()
    group = re.fullmatch(r"group:([1-9]\d{0,8})", text)
    if not group:
        raise ArgumentError(complaint(f"--granularity {text!r}", "channel, tensor or group:N", "refquant"))
    return PerGroup(1, int(group[1]))


# ---- files ----------------------------------------------------------------------------------------------------


def ready(folder: Path) -> None:
    """Make the folder, and make sure now that files can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        got = f"{error.strerror or error}"
        raise FileError(complaint(got, "a folder that can be written", str(folder), "choose another --out")) from None


def write(path: Path, text: str) -> None:
    """Write beside, then rename: the file is whole or not there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise FileError(complaint(f"{error.strerror or error}", "a file that can be written", str(path))) from None
    finally:
        beside.unlink(missing_ok=True)
