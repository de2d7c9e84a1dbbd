"""Train the raw denoiser. From the root of the repository:

    python -m models.raw_denoiser.train                  the shipped checkpoint (MSConv2d, seed 0)
    python -m models.raw_denoiser.train --study          3 variants x 3 seeds, results.json, and the shipped checkpoint

The three variants are trained alike: same batches, same noise, same number of steps, same optimizer; the seed decides
all random numbers. Numbers repeat on one machine with one number of threads; between machines they agree closely, but
not bit for bit, because floating-point sums are ordered differently.

On a machine that does other work as well, set OMP_WAIT_POLICY=passive: threads that wait for each other then sleep
instead of spinning, which there makes training many times faster and changes no number.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from models.raw_denoiser import metrics
from models.raw_denoiser.batches import BatchSource
from models.raw_denoiser.checkpoint import CHECKPOINT, RESULTS, SHIPPED_SEED, SHIPPED_VARIANT, save_checkpoint
from models.raw_denoiser.network import VARIANTS, RawDenoiser, parameter_count, seeded
from msconv_deploy.errors import MsconvError
from msconv_deploy.files import check_writable, write_text

STUDY_SEEDS = (0, 1, 2)
REPORT_EVERY = 2.0  # seconds


@dataclass(frozen=True)
class Settings:
    """Everything about training that is the same for all variants."""

    steps: int = 3500
    batch_size: int = 8
    patch: int = 32  #: packed pixels
    learning_rate: float = 4e-3
    warm_up: int = 50  #: steps
    gradient_norm: float = 1.0


def report(message: str) -> None:
    """Progress goes to stderr."""
    print(message, file=sys.stderr, flush=True)


def negative_psnr(estimate: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of 10 log10(MSE of a sample), in dB.

    The logarithm lets a frame at gain 1, whose squared error is hundreds of times smaller, count as much as one at
    gain 64.
    """
    mse = (estimate - clean).square().mean(dim=(1, 2, 3))
    return 10.0 * torch.log10(mse + 1e-10).mean()


def train(variant: str, seed: int, settings: Settings) -> RawDenoiser:
    """Train one network: Adam, linear warm-up, cosine decay to zero."""
    model = seeded(variant, seed)
    batches = BatchSource(seed, settings.batch_size, settings.patch)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)

    def rate(step: int) -> float:
        cosine = 0.5 * (1.0 + np.cos(np.pi * step / settings.steps))
        return min(1.0, (step + 1) / settings.warm_up) * cosine

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    start = reported = time.monotonic()
    losses = []
    for step in range(1, settings.steps + 1):
        batch = batches.next()
        loss = negative_psnr(model(*batch.inputs), batch.clean)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        now = time.monotonic()
        if now - reported > REPORT_EVERY or step == settings.steps:
            reported, elapsed = now, now - start
            left = elapsed / step * (settings.steps - step)
            mean = -float(np.mean(losses[-100:]))
            report(
                f"{variant} seed {seed}: step {step}/{settings.steps}, training PSNR {mean:.2f} dB, "
                f"{elapsed:.0f} s, {left:.0f} s left"
            )
    return model.eval()


def study(settings: Settings, threads: int, checkpoint: Path, results: Path) -> None:
    """Train every variant with every seed, measure on the held-out photographs, write results and checkpoint."""
    runs = []
    for seed in STUDY_SEEDS:
        for variant in VARIANTS:
            start = time.monotonic()
            model = train(variant, seed, settings)
            seconds = time.monotonic() - start
            runs.append(
                {
                    "variant": variant,
                    "seed": seed,
                    "parameters": parameter_count(model),
                    "training_seconds": round(seconds, 1),
                    "development": metrics.psnr_by_gain(model, "development"),
                    "held_out": metrics.psnr_by_gain(model, "held-out"),
                }
            )
            if (variant, seed) == (SHIPPED_VARIANT, SHIPPED_SEED):
                save_checkpoint(model, checkpoint)
    record = {
        "schema_version": 1,
        "settings": asdict(settings),
        "shipped": {"variant": SHIPPED_VARIANT, "seed": SHIPPED_SEED},
        "evaluation": {"gains": list(metrics.GAINS), "frames": metrics.FRAMES},
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "machine": platform.machine(),
            "threads": threads,
        },
        "noisy": {
            "development": metrics.psnr_by_gain(metrics.no_denoising, "development"),
            "held_out": metrics.psnr_by_gain(metrics.no_denoising, "held-out"),
        },
        "runs": runs,
    }
    write_text(results, json.dumps(record, indent=1) + "\n", force=True)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m models.raw_denoiser.train",
        description="Train the raw denoiser.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    result.add_argument("--study", action="store_true", help="train all variants and seeds and write the results")
    result.add_argument("--variant", choices=VARIANTS, default=SHIPPED_VARIANT, help="without --study")
    result.add_argument("--seed", type=int, default=SHIPPED_SEED, help="without --study")
    result.add_argument("--steps", type=int, default=Settings.steps, help="optimizer steps of one training")
    result.add_argument("--threads", type=int, default=2, help="threads that torch computes with")
    result.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="where the weights go")
    result.add_argument("--results", type=Path, default=RESULTS, help="where the study's numbers go")
    return result


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    settings = Settings(steps=options.steps)
    try:
        check_writable(options.checkpoint, force=True)
        if options.study:
            check_writable(options.results, force=True)
            study(settings, options.threads, options.checkpoint, options.results)
            report(f"wrote {options.results} and {options.checkpoint}")
        else:
            model = train(options.variant, options.seed, settings)
            save_checkpoint(model, options.checkpoint)
            for gain in metrics.GAINS:
                table = metrics.psnr_by_gain(model, "development", [gain])
                report(f"development photograph, gain {gain:g}: {metrics.mean_psnr(table, f'{gain:g}'):.2f} dB")
            report(f"wrote {options.checkpoint}")
    except MsconvError as error:
        report(f"error: {error}")
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
