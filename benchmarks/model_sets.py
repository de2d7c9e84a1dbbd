"""The files that the benchmarks measure: the project's own networks, and a folder of files from elsewhere where it is there.

A folder holds ONNX files and a manifest.json: file -> {"inputs": {name: [dtype, shape]}, "allow": [rules]}, the latter may be
left out.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NETWORKS, ZOO = "networks", "zoo"


@dataclass(frozen=True)
class Entry:
    """A file to measure.

    Attributes:
        collection: NETWORKS or ZOO.
        folder, file: where it lies.
        shapes: extents of its inputs.
        allow: rules that have to be allowed by name.
    """

    collection: str
    folder: Path
    file: str
    shapes: dict[str, Sequence[int]]
    allow: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.file.removesuffix(".onnx")


def entries_of(folder: Path, collection: str, only: str = "") -> list[Entry]:
    """The files of a folder with a manifest, those with a text in their name."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return [
        Entry(
            collection,
            folder,
            file,
            {name: shape for name, (_, shape) in given["inputs"].items()},
            tuple(given.get("allow", ())),
        )
        for file, given in manifest.items()
        if only in file
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--zoo, --networks and --only."""
    parser.add_argument(
        "--zoo", type=Path, metavar="FOLDER", help="also the files of this folder, with a manifest.json"
    )
    parser.add_argument(
        "--networks",
        type=Path,
        metavar="FOLDER",
        help="the project's networks as exported before; default: export them",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only files with this in their name")


def as_options(args: argparse.Namespace) -> list[str]:
    """The given ones of these arguments, for the command that a result file records."""
    options = [f"--zoo {os.path.relpath(args.zoo, ROOT)}"] if args.zoo else []
    return options + [f"--only {args.only}"] * bool(args.only)


@contextmanager
def chosen(args: argparse.Namespace) -> Iterator[list[Entry]]:
    """The files that the arguments name, the project's networks first; they are there until the end of the context.

    Raises:
        FileNotFoundError: a folder has no manifest.json.
    """
    with tempfile.TemporaryDirectory() as temporary:
        networks = args.networks or Path(temporary)
        for folder in filter(None, (args.networks, args.zoo)):
            if not (folder / "manifest.json").is_file():
                raise FileNotFoundError(f"{folder}: there is no manifest.json")
        if args.networks is None:
            from benchmarks.networks import export_networks

            export_networks(networks, args.only)
        found = entries_of(networks, NETWORKS, args.only)
        if args.zoo:
            found += entries_of(args.zoo, ZOO, args.only)
        yield found
