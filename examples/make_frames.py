"""Sample frames for ``denoise_folder``: held-out photographs, seen through the sensor model at several gains.

    python -m examples.make_frames FOLDER [--count 8] [--size 256]

Writes ``<name>.png`` and ``<name>.json``, and with --truth the clean picture into ``FOLDER/truth``. Needs the extra ``models``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.frames import write_frame
from models.raw_denoiser import photographs, sensor
from msconv_deploy.errors import MsconvError

GAINS = (4.0, 16.0, 64.0)


def make_frames(folder: Path, count: int, size: int, seed: int = 0, truth: bool = False) -> list[Path]:
    """Write ``count`` frames of at most ``size`` x ``size`` sensor pixels; the last ones are smaller, none is square."""
    rng = np.random.default_rng(seed)
    scenes = photographs.of_split("held-out")
    folder.mkdir(parents=True, exist_ok=True)
    if truth:
        (folder / "truth").mkdir(exist_ok=True)
    made = []
    for index in range(count):
        photograph = scenes[index % len(scenes)]
        height = 2 * max(1, int(size * (1 - 0.1 * (index % 4)) / 2))
        width = 2 * max(1, int(height * 0.75 / 2))
        picture = photographs.load(photograph)
        top, left = (2 * int(rng.integers((extent - part) // 2 + 1)) for extent, part in
                     zip(picture.shape, (height, width), strict=False))  # fmt: skip
        clean = sensor.pack(sensor.mosaic(picture[top : top + height, left : left + width]))
        conditions = sensor.draw_conditions(rng, GAINS[index % len(GAINS)])
        made.append(folder / f"{index:03}-{photograph.label}.png")
        write_frame(made[-1], sensor.capture(clean, conditions, rng), conditions)
        if truth:
            np.save(folder / "truth" / f"{made[-1].stem}.npy", sensor.unpack(clean))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make sample frames for denoise_folder.")
    parser.add_argument("folder", type=Path, help="where they are written")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="largest height in sensor pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--truth", action="store_true", help="also write the clean pictures")
    options = parser.parse_args(arguments)
    try:
        made = make_frames(options.folder, options.count, options.size, options.seed, options.truth)
    except MsconvError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    print(f"wrote {len(made)} frames into {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
