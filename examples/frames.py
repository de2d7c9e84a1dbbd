"""Raw frames on disk: a mosaic, and beside it how the frame was taken. What the denoiser's clients read and write.

A frame is one file, RGGB, of even height and width:

- 16-bit grey ``.png`` or ``.tif``, integers from ``black_level`` to ``white_level`` (needs Pillow);
- ``.npy``, integers likewise, or floats where 0 is black and 1 is saturation.

Its metadata is ``<same name>.json``, or a row of ``metadata.csv`` in the same folder whose column ``file`` names it:

====================================== ===========================================================================
gain, read_noise, exposure, temperature numbers; units as in ``models/raw_denoiser/sensor.py``
rows, columns                          readings of the optically black border, one for each sensor row and column, in
                                       the frame's own units above black: numbers, or the name of a ``.npy`` file
black_level, white_level               of integers; the default is 0 and the largest value of the type
====================================== ===========================================================================
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from models.raw_denoiser import sensor
from msconv_deploy.errors import BadInputError, NotAvailableError
from msconv_deploy.files import atomic_write

PICTURES = (".png", ".tif", ".tiff")
SUFFIXES = (*PICTURES, ".npy")
TABLE = "metadata.csv"
READINGS = ("rows", "columns")
CONDITIONS = tuple(sensor.RANGES)


@dataclass(frozen=True)
class Frame:
    """A frame as the network takes it.

    Attributes:
        inputs: nchw [1, 4, H, W], nch [1, 2, H], ncw [1, 2, W], nc [1, 4], float32.
        dtype: of the file.
        black, white: values in the file of 0 and of 1.
    """

    path: Path
    inputs: dict[str, NDArray[np.float32]]
    dtype: np.dtype
    black: float
    white: float


def find_frames(folder: Path) -> list[Path]:
    """All frames of a folder, by name; files of readings are none.

    Raises:
        BadInputError: there are none.
    """
    if not folder.is_dir():
        raise BadInputError(f"{folder}: no such folder")
    readings = {folder / text for entry in _metadata_files(folder) for text in entry.values() if isinstance(text, str)}
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p not in readings)
    if not found:
        raise BadInputError(f"{folder}: holds no frames ({', '.join(SUFFIXES)})")
    return found


def _metadata_files(folder: Path) -> list[Mapping[str, object]]:
    found: list[Mapping[str, object]] = []
    for path in folder.glob("*.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            continue  # said when its frame is read
        if isinstance(content, dict):
            found.append({key: content.get(key) for key in READINGS})
    for row in _table(folder).values():
        found.append({key: row.get(key) for key in READINGS})
    return found


def _table(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of ``metadata.csv`` by file name; empty cells are left out."""
    path = folder / TABLE
    return _read_table(path, path.stat().st_mtime_ns) if path.is_file() else {}


@lru_cache(maxsize=4)
def _read_table(path: Path, changed: int) -> dict[str, dict[str, str]]:
    """Read once for all frames, and again when it was changed."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if rows and "file" not in rows[0]:
        raise BadInputError(f"{path}: has no column 'file'")
    return {row["file"]: {key: value for key, value in row.items() if value and key != "file"} for row in rows}


def read_frame(path: Path) -> Frame:
    """Read a frame and its metadata.

    Raises:
        BadInputError: a file is missing or not what it should be; the message names the file and the field.
        NotAvailableError: Pillow is needed and not installed.
    """
    mosaic = _read_mosaic(path)
    metadata = _metadata(path)
    integers = mosaic.dtype.kind in "ui"
    black = _number(path, metadata, "black_level", 0.0)
    white = _number(path, metadata, "white_level", float(np.iinfo(mosaic.dtype).max) if integers else 1.0)
    if not white > black:
        raise BadInputError(f"{path}: white_level {white:g} is not above black_level {black:g}")
    conditions = sensor.Conditions(**{name: _number(path, metadata, name) for name in CONDITIONS})
    if min(conditions.gain, conditions.read_noise, conditions.exposure) <= 0:
        raise BadInputError(f"{path}: gain, read_noise and exposure are positive numbers")
    height, width = mosaic.shape
    scale = white - black
    inputs = {
        "nchw": sensor.pack((mosaic.astype(np.float64) - black) / scale),
        # sensor rows 2h and 2h+1 belong to packed row h, columns likewise
        "nch": _readings(path, metadata, "rows", height).reshape(-1, 2).T / scale,
        "ncw": _readings(path, metadata, "columns", width).reshape(-1, 2).T / scale,
        "nc": sensor.normalise(conditions),
    }
    arrays = {name: np.ascontiguousarray(value[None], np.float32) for name, value in inputs.items()}
    return Frame(path, arrays, mosaic.dtype, black, white)


def write_result(frame: Frame, denoised: NDArray, folder: Path) -> Path:
    """Write a denoised packed image [1, 4, H, W] as the kind of file that the frame was, complete or not at all."""
    mosaic = sensor.unpack(denoised[0].astype(np.float64)) * (frame.white - frame.black) + frame.black
    path = folder / frame.path.name
    if frame.dtype.kind in "ui":
        limits = np.iinfo(frame.dtype)
        mosaic = np.clip(np.round(mosaic), limits.min, limits.max)
    _write_mosaic(path, mosaic.astype(frame.dtype))
    return path


def write_frame(path: Path, capture: sensor.Capture, conditions: sensor.Conditions, black_level: int = 1 << 14) -> None:
    """Write a capture as a 16-bit frame with its metadata; exact, because a capture has the steps of a converter.

    Args:
        black_level: pedestal that keeps what is darker than black: high, because noise at high gain goes far below it.

    Raises:
        BadInputError: the pedestal is too low for this frame.
    """
    steps = 2 ** sensor.Sensor().adc_bits - 1
    mosaic = np.round(sensor.unpack(capture.nchw).astype(np.float64) * steps) + black_level
    if mosaic.min() < 0:
        raise BadInputError(f"{path}: a black_level of {black_level} is too low: the darkest pixel is {mosaic.min():g}")
    _write_mosaic(path, mosaic.astype(np.uint16))
    metadata = asdict(conditions) | {
        "black_level": black_level,
        "white_level": black_level + steps,
        "rows": (capture.nch.T.ravel().astype(np.float64) * steps).tolist(),
        "columns": (capture.ncw.T.ravel().astype(np.float64) * steps).tolist(),
    }
    with atomic_write(path.with_suffix(".json"), force=True) as temporary:
        temporary.write_text(json.dumps(metadata) + "\n", encoding="utf-8")


# -- files -----------------------------------------------------------------------------------------------------------


def _read_mosaic(path: Path) -> NDArray:
    try:
        if path.suffix.lower() == ".npy":
            mosaic = np.load(path, allow_pickle=False)
        else:
            with _pillow().open(path) as image:
                mosaic = np.asarray(image)
    except (OSError, ValueError, EOFError) as error:
        raise BadInputError(f"{path}: is not a frame: {error}") from None
    if path.suffix.lower() != ".npy" and mosaic.dtype not in (np.uint8, np.uint16):
        raise BadInputError(f"{path}: is {mosaic.dtype.name}; a picture of a mosaic is 8- or 16-bit grey")
    if mosaic.ndim != 2 or mosaic.dtype.kind not in "uif" or 0 in mosaic.shape:
        raise BadInputError(f"{path}: is {mosaic.dtype.name}{list(mosaic.shape)}; a frame is a mosaic [height, width]")
    if mosaic.shape[0] % 2 or mosaic.shape[1] % 2:
        raise BadInputError(f"{path}: is {list(mosaic.shape)}; a Bayer mosaic has even height and width")
    return mosaic


def _write_mosaic(path: Path, mosaic: NDArray) -> None:
    with atomic_write(path, force=True) as temporary:
        if path.suffix.lower() == ".npy":
            np.save(temporary, mosaic)
        else:
            _pillow().fromarray(mosaic).save(temporary)


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError:
        raise NotAvailableError("pictures are read by Pillow: pip install pillow; or use .npy files") from None
    return Image


def _metadata(path: Path) -> Mapping[str, object]:
    beside = path.with_suffix(".json")
    if beside.is_file():
        try:
            content = json.loads(beside.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise BadInputError(f"{beside}: is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise BadInputError(f"{beside}: is not a JSON object")
        return content
    table = _table(path.parent)
    if path.name not in table:
        raise BadInputError(f"{path}: has no metadata: neither {beside.name} nor a row in {TABLE}")
    return table[path.name]


def _number(path: Path, metadata: Mapping[str, object], name: str, default: float | None = None) -> float:
    value = metadata.get(name, default)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        problem = "is missing" if value is None else f"is {value!r}, not a number"
        raise BadInputError(f"{path}: metadata field {name} {problem}")
    return number


def _readings(path: Path, metadata: Mapping[str, object], name: str, count: int) -> NDArray[np.float64]:
    """Readings of all sensor rows or columns [count]."""
    value = metadata.get(name)
    if value is None:
        raise BadInputError(f"{path}: metadata field {name} is missing")
    try:
        if isinstance(value, str):
            file = path.parent / value
            if Path(value).name != value:
                raise ValueError("a file beside the frame is meant")
            value = np.load(file, allow_pickle=False)
        readings = np.asarray(value, np.float64)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise BadInputError(f"{path}: metadata field {name}: {error}") from None
    if readings.shape != (count,) or not np.isfinite(readings).all():
        raise BadInputError(
            f"{path}: metadata field {name} has the shape {list(readings.shape)} and must be {count} finite numbers"
        )
    return readings
