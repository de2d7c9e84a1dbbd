"""TensorRT's C++ headers: in no Python package; of an installed TensorRT, or fetched from its public repository on request."""

from __future__ import annotations

import errno
import re
import tarfile
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from msconv_deploy.errors import BadInputError, NotAvailableError
from msconv_deploy.runtimes import places

ARCHIVE = "https://github.com/NVIDIA/TensorRT/archive/refs/tags/v{version}.tar.gz"
HOW_TO_GET = (
    "set TENSORRT_ROOT to an unpacked TensorRT, install its headers (apt install libnvinfer-headers-dev), or let "
    "`msconv plugin build --tensorrt VERSION --download` fetch those of a release (11.1, 10.16, 10.6.0, 8.6.1, ...)"
)


@dataclass(frozen=True)
class Headers:
    """A folder that holds NvInferRuntime.h, and the version that it is of."""

    folder: Path
    version: str

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])


def available() -> list[Headers]:
    """All that are found, in the order in which they count (``docs/spec.md``, places)."""
    found = [(folder, places.header_version(folder)) for folder in places.header_folders()]
    return [Headers(folder, version) for folder, version in found if version is not None]


def find_headers(version: str | None = None, download: bool = False) -> Headers:
    """The first headers, or the first of a version.

    Args:
        version: as exactly as it matters: ``10`` is the first of any 10, ``10.6`` of any 10.6.
        download: fetch them if they are not there; ``version`` must then be that of a release's tag.

    Raises:
        BadInputError: the version is none, or ``download`` is asked for without one.
        NotAvailableError: there are none, or they cannot be fetched.
    """
    if version is not None and not re.fullmatch(r"\d+(\.\d+){0,3}", version):
        raise BadInputError(f"--tensorrt {version}: is no version; write 11, 10.16 or 10.6.0")
    found = available()
    for headers in found:
        if version is None or _is_of(headers.version, version):
            return headers
    if download:
        if version is None:
            raise BadInputError("--download needs the version of a release: --tensorrt 11.1")
        return fetch_headers(version)
    have = "".join(f"\n  - {headers.version} in {headers.folder}" for headers in found)
    what = "no C++ headers of TensorRT" + (f" {version}" if version else "")
    raise NotAvailableError(f"{what} were found: {HOW_TO_GET}" + (f". There are:{have}" if have else ""))


def fetch_headers(version: str, url: str = ARCHIVE) -> Headers:
    """Fetch ``include/`` of a release's tag into the cache folder, where nothing but headers with a version comes to lie.

    Raises:
        NotAvailableError: the machine does not reach the address, or there is no such tag.
        BadInputError: what came is not the headers.
    """
    address = url.format(version=version)
    target = (places.CACHE / "tensorrt-headers" / version / "include").expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        archive, folder = Path(work) / "archive.tar.gz", Path(work) / "include"
        folder.mkdir()
        try:
            with urllib.request.urlopen(address, timeout=60) as source, archive.open("wb") as sink:
                while block := source.read(1 << 20):
                    sink.write(block)
        except urllib.error.HTTPError as error:
            raise NotAvailableError(
                f"{address}: {error.code} {error.reason}; is {version} a tag of github.com/NVIDIA/TensorRT?"
            ) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise NotAvailableError(
                f"{address}: cannot be reached from here: {reason}. Fetch it elsewhere and copy its include folder to "
                f"{target}, or point TENSORRT_INCLUDE_DIR to it"
            ) from None
        _unpack_headers(archive, folder, address)
        found = places.header_version(folder)
        if found is None:
            raise BadInputError(
                f"{address}: its NvInferVersion.h names no version, so these are not TensorRT's headers"
            )
        return Headers(target, _put_in_place(folder, target, found))


def _put_in_place(folder: Path, target: Path, version: str) -> str:
    """Move fetched headers into the cache; the version of those that are there then.

    Raises:
        BadInputError: something else is there.
    """
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        held = places.header_version(target)  # another process was faster, or an older program left something
        if held is None:
            raise BadInputError(f"{target}: is not TensorRT's headers: remove it, and try again") from None
        return held
    return version


def _unpack_headers(archive: Path, folder: Path, address: str) -> None:
    """The files of ``<top>/include`` of an archive, written by their own names: nothing leads outside the folder."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                parts = Path(member.name).parts
                if not member.isfile() or len(parts) < 3 or parts[1] != "include" or ".." in parts:
                    continue
                path = folder.joinpath(*parts[2:])
                path.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                path.write_bytes(content.read() if content else b"")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BadInputError(f"{address}: is no archive: {error}") from None
    if not (folder / "NvInferRuntime.h").is_file():
        raise BadInputError(f"{address}: holds no include/NvInferRuntime.h")


def _is_of(version: str, wanted: str) -> bool:
    """Is 10.6.0 of 10.6? Missing numbers of the version count as 0."""
    numbers, asked = version.split("."), wanted.split(".")
    return [int(n) for n in (numbers + ["0"] * len(asked))[: len(asked)]] == [int(n) for n in asked]
