"""Write DATASHEET.md and the picture from results.json and the checkpoint. From the root of the repository:

    python -m models.raw_denoiser.evaluate

First measures the checkpoint again: if its PSNR is not the one that results.json has for it, the two files do not
belong together, nothing is written and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from models.raw_denoiser import datasheet, metrics, picture
from models.raw_denoiser.checkpoint import CHECKPOINT, FOLDER, RESULTS, load_checkpoint
from msconv_deploy.errors import BadInputError, MsconvError, NotAvailableError, OutputsDifferError
from msconv_deploy.files import write_text

#: dB. Another machine orders floating-point sums differently, which moves PSNR by far less than this.
TOLERANCE = 0.02


def report(message: str) -> None:
    """Progress goes to stderr."""
    print(message, file=sys.stderr, flush=True)


def read_results(path: Path) -> datasheet.Results:
    """The study's record.

    Raises:
        NotAvailableError: the file is not there.
        BadInputError: it is not JSON of the known schema version.
    """
    if not path.is_file():
        raise NotAvailableError(f"{path}: not found; `python -m models.raw_denoiser.train --study` makes it")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        version = results["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"{path}: not the results of a study ({error!r})") from error
    if version != 1:
        raise BadInputError(f"{path}: schema_version is {version!r}; this program reads 1")
    return results


def check_checkpoint(model: metrics.Denoiser, results: datasheet.Results) -> None:
    """Measure the checkpoint on the held-out photographs and compare with the record.

    Raises:
        OutputsDifferError: some PSNR is off by more than ``TOLERANCE``.
    """
    shipped = results["shipped"]
    (run,) = (r for r in results["runs"] if (r["variant"], r["seed"]) == (shipped["variant"], shipped["seed"]))
    measured = metrics.psnr_by_gain(
        model,
        "held-out",
        results["evaluation"]["gains"],
        results["evaluation"]["frames"],
        progress=lambda message: report(f"measuring {message}"),
    )
    for photograph, by_gain in measured.items():
        for gain, values in by_gain.items():
            recorded = run["held_out"][photograph][gain]["linear"]
            if abs(values["linear"] - recorded) > TOLERANCE:
                raise OutputsDifferError(
                    f"{photograph}, gain {gain}: the checkpoint gives {values['linear']:.3f} dB, results.json has "
                    f"{recorded:.3f} dB: the two files do not belong together; run "
                    "`python -m models.raw_denoiser.train --study`"
                )


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m models.raw_denoiser.evaluate",
        description="Measure the checkpoint; write the data sheet and the picture.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    result.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="weights of the shipped variant")
    result.add_argument("--results", type=Path, default=RESULTS, help="record of the study")
    result.add_argument("--output", type=Path, default=FOLDER, help="folder for DATASHEET.md and the picture")
    result.add_argument("--threads", type=int, default=2, help="threads that torch computes with")
    return result


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        results = read_results(options.results)
        model = load_checkpoint(options.checkpoint, results["shipped"]["variant"])
        check_checkpoint(model, results)
        report("drawing the picture")
        picture.draw(model, options.output / "noisy_denoised_truth.png")
        sheet = datasheet.render(results, options.checkpoint.stat().st_size)
        write_text(options.output / "DATASHEET.md", sheet, force=True)
        report(datasheet.psnr_table(results))
        report(f"wrote DATASHEET.md and noisy_denoised_truth.png in {options.output}")
    except MsconvError as error:
        report(f"error: {error}")
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
