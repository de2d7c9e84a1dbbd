"""DATASHEET.md from the study's results: every number in it is computed, none is typed."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.raw_denoiser import metrics, photographs, picture, sensor
from models.raw_denoiser.network import VARIANTS

Results = dict[str, Any]

_NAMES = {"image-only": "image only", "tile-concat": "tile-concat", "msconv": "MSConv2d"}


def _gains(results: Results) -> list[str]:
    return [f"{gain:g}" for gain in results["evaluation"]["gains"]]


def _seeds(results: Results) -> list[int]:
    return sorted({run["seed"] for run in results["runs"]})


def _by_seed(results: Results, variant: str, gain: str, domain: str, photograph: str | None = None) -> list[float]:
    """PSNR of each seed's network on the held-out photographs (their mean, or one of them)."""
    values = []
    for seed in _seeds(results):
        (run,) = (r for r in results["runs"] if (r["variant"], r["seed"]) == (variant, seed))
        table = run["held_out"]
        values.append(metrics.mean_psnr(table if photograph is None else {photograph: table[photograph]}, gain, domain))
    return values


def _spread(values: list[float], sign: bool = False) -> str:
    """mean [smallest, largest]"""
    form = "+.2f" if sign else ".2f"
    return f"{np.mean(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def psnr_table(results: Results, domain: str = "linear", photograph: str | None = None) -> str:
    """Markdown: rows noisy and the variants, columns the gains, cells mean and range over seeds in dB."""
    gains = _gains(results)
    noisy = results["noisy"]["held_out"]
    if photograph is not None:
        noisy = {photograph: noisy[photograph]}
    lines = ["| | " + " | ".join(f"gain {gain}" for gain in gains) + " |", "|---" * (len(gains) + 1) + "|"]
    lines.append("| noisy | " + " | ".join(f"{metrics.mean_psnr(noisy, gain, domain):.2f}" for gain in gains) + " |")
    for variant in VARIANTS:
        cells = [_spread(_by_seed(results, variant, gain, domain, photograph)) for gain in gains]
        lines.append(f"| {_NAMES[variant]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(results: Results, variant: str, baseline: str, domain: str = "linear") -> dict[str, list[float]]:
    """{gain, and "all" for their mean: PSNR of variant minus PSNR of baseline, one number a seed}."""
    result = {}
    for gain in _gains(results):
        pairs = zip(_by_seed(results, variant, gain, domain), _by_seed(results, baseline, gain, domain), strict=True)
        result[gain] = [a - b for a, b in pairs]
    result["all"] = [float(np.mean(values)) for values in zip(*result.values(), strict=True)]
    return result


def verdict(results: Results, variant: str, baseline: str) -> str:
    """One sentence: better, worse, or not told apart by the seeds."""
    values = differences(results, variant, baseline)["all"]
    numbers = f"{_spread(values, sign=True)} dB, mean over gains [range over {len(values)} seeds]"
    name, other = _NAMES[variant], _NAMES[baseline]
    if min(values) > 0:
        return f"{name} is better than {other} with every seed: {numbers}."
    if max(values) < 0:
        return f"{name} is worse than {other} with every seed: {numbers}."
    return f"{name} and {other} are not told apart; the sign of the difference depends on the seed: {numbers}."


def _difference_table(results: Results) -> str:
    gains = [*_gains(results), "all"]
    titles = [f"gain {gain}" for gain in gains[:-1]] + ["mean"]
    lines = ["| MSConv2d minus | " + " | ".join(titles) + " |", "|---" * (len(gains) + 1) + "|"]
    for baseline in ("image-only", "tile-concat"):
        values = differences(results, "msconv", baseline)
        lines.append(f"| {_NAMES[baseline]} | " + " | ".join(_spread(values[g], sign=True) for g in gains) + " |")
    return "\n".join(lines)


def _losses(results: Results) -> str:
    """A line for each variant that makes some held-out frames worse than they were; it has to be said first."""
    lines = []
    for variant in VARIANTS:
        worse = [
            f"`{p.label}` at gain {gain}"
            for p in photographs.of_split("held-out")
            for gain in _gains(results)
            if np.mean(_by_seed(results, variant, gain, "linear", p.label))
            < results["noisy"]["held_out"][p.label][gain]["linear"]
        ]
        if worse:
            lines.append(f"- {_NAMES[variant]} is worse than no denoising on: {'; '.join(worse)}.")
    if any(line.startswith("- image only") for line in lines):
        lines.append(
            "- So image only is a weak baseline here. It shares an architecture and a short training that were chosen\n"
            "  with metadata in mind; a denoiser built to estimate the noise level from the image may do better.\n"
            "  Its distance to the other two says what this network gains from metadata, not what any denoiser would."
        )
    return "\n".join(lines)


def _photograph_table() -> str:
    lines = ["| split | scene | photograph | origin and licence |", "|---|---|---|---|"]
    for p in photographs.PHOTOGRAPHS:
        scaled = f", averaged over {p.downscale}x{p.downscale} blocks" if p.downscale > 1 else ""
        lines.append(f"| {p.split} | {p.scene} | `{p.label}`: {p.content}{scaled} | {p.licence} |")
    return "\n".join(lines)


def _parameter_table(results: Results) -> str:
    lines = ["| variant | parameters | training, seconds (fastest seed) |", "|---|---|---|"]
    for variant in VARIANTS:
        runs = [run for run in results["runs"] if run["variant"] == variant]
        seconds = min(run["training_seconds"] for run in runs)
        lines.append(f"| {_NAMES[variant]} | {runs[0]['parameters']} | {seconds:.0f} |")
    return "\n".join(lines)


def _range(name: str) -> str:
    low, high, _ = sensor.RANGES[name]
    return f"{low:g} to {high:g}"


def render(results: Results, checkpoint_bytes: int) -> str:
    """The whole data sheet as Markdown."""
    s, settings, environment = sensor.Sensor(), results["settings"], results["environment"]
    shipped, patch = results["shipped"], settings["patch"]
    c = picture.CROPS[0].conditions  # the crops differ in gain alone
    conditions = f"read noise {c.read_noise:g} e-, exposure {c.exposure:g} s, sensor at {c.temperature:g} °C"
    machine = f"PyTorch {environment['torch']}, {environment['machine']}, {environment['threads']} threads"
    rate, warm_up = settings["learning_rate"], settings["warm_up"]
    parameters = next(r["parameters"] for r in results["runs"] if r["variant"] == shipped["variant"])
    held_out = len(photographs.of_split("held-out"))
    per_photograph = "\n\n".join(
        f"`{p.label}`, linear raw domain:\n\n{psnr_table(results, photograph=p.label)}"
        for p in photographs.of_split("held-out")
    )
    return f"""# Data sheet: raw denoiser

<!-- Written by `python -m models.raw_denoiser.evaluate` from results.json. Do not edit. -->

## What it is

A network of {parameters} parameters that removes the noise of a packed Bayer image, knowing how the frame was taken. It
is the reference model of this repository: small, trained on real photographs, and in need of all four sources of an
MSConv2d. It is not a product, and was never shown a real camera's raw file.

| input | shape | content |
|---|---|---|
| nchw | [N, 4, H, W] | packed RGGB image (R, G1, G2, B), linear; 0 is black, 1 is saturation |
| nch | [N, 2, H] | row offsets as read from the optically black border: sensor rows 2h and 2h+1, units of nchw |
| ncw | [N, 2, W] | column offsets, likewise: sensor columns 2w and 2w+1 |
| nc | [N, 4] | log gain, log read noise, log exposure, temperature; each mapped to [-1, 1] over the ranges below |

Output: the denoised packed image, [N, 4, H, W]. All float32. Any H and W. The checkpoint, `raw_denoiser.safetensors`
({checkpoint_bytes / 1000:.0f} kB), is the variant `{shipped["variant"]}` trained with seed {shipped["seed"]}.

![Noisy, denoised and truth of two held-out photographs](noisy_denoised_truth.png)

Crops of the held-out photographs at high gain ({conditions}). PSNR of the crop
in the linear raw domain. Bilinear demosaicing and the sRGB curve are for display only.

## Photographs

All are 8-bit files inside the scikit-image wheel; nothing is downloaded. Origin and licence as scikit-image states
them. The split is by scene, so both views of the stereo pair are on one side. The development photograph chose the
architecture and the training settings (looking mostly at the MSConv2d variant); the held-out photographs were used
for the numbers below and nothing else.

{_photograph_table()}

## Sensor model

The sRGB curve is undone (IEC 61966-2-1), the image is mosaicked (RGGB), and noise is added: photon and dark-current
shot noise (Poisson), read noise (Gaussian per pixel), row noise (Gaussian per row and frame), column fixed pattern
(Gaussian per column), rounding by a {s.adc_bits}-bit converter, saturation. The formulas are in `sensor.py`. Sources:

- A. Foi, M. Trimeche, V. Katkovnik, K. Egiazarian, "Practical Poissonian-Gaussian noise modeling and fitting for
  single-image raw-data", IEEE Transactions on Image Processing 17(10), 2008: signal-dependent variance.
- K. Wei, Y. Fu, J. Yang, H. Huang, "A physics-based noise formation model for extreme low-light raw denoising",
  CVPR 2020: row noise, quantization.
- EMVA Standard 1288: dark current, its doubling temperature, dark-signal non-uniformity of columns.

| constant | value |
|---|---|
| electrons at saturation, gain 1 | {s.full_well:g} |
| dark current at {s.dark_reference:g} °C | {s.dark_rate:g} e-/s, doubles every {s.dark_doubling:g} °C |
| row offset, standard deviation | {s.row_ratio:g} x read noise |
| column offset, variance | ({s.column_ratio:g} x read noise)^2 + ({s.column_dark_ratio:g} x dark signal)^2 |
| black pixels averaged for a reading | {s.black_pixels} |
| gain | {_range("gain")}, log-uniform |
| read noise | {_range("read_noise")} e-, log-uniform |
| exposure | {_range("exposure")} s, log-uniform |
| temperature | {_range("temperature")} °C, uniform |

The constants are plausible for a small sensor with strong banding. They are not fitted to a camera.

## Training

Three variants of one network, trained alike (same crops, same noise, same steps), which differ only in what
becomes of the metadata: *image only* never sees it (its noise level is one learned constant), *tile-concat* tiles it
to images and concatenates, *MSConv2d* reads it as it is. Crops of {patch}x{patch} packed pixels are flipped,
transposed, dimmed and tinted at random, and seen under random conditions. Adam, {settings["steps"]} steps of
{settings["batch_size"]} crops; learning rate {rate:g}, {warm_up} steps of warm-up, then cosine decay.
The loss is minus the mean PSNR of the crops.

{_parameter_table(results)}

{machine}; times include whatever else the machine did. Seeds decide all random numbers;
bitwise equality between machines is not promised.

    python -m models.raw_denoiser.train --study     # checkpoint and results.json
    python -m models.raw_denoiser.evaluate          # this page and the picture

## Results on the held-out photographs

PSNR in dB, peak 1: mean over photographs and {results["evaluation"]["frames"]} frames each, with read noise, exposure
and temperature drawn anew for every frame; then mean [range] over {len(_seeds(results))} seeds. All variants see the
same frames.

In the linear raw domain:

{psnr_table(results)}

After clipping and the sRGB curve:

{psnr_table(results, "srgb")}

Paired by seed, linear raw domain:

{_difference_table(results)}

- **{verdict(results, "msconv", "image-only")}**
- **{verdict(results, "msconv", "tile-concat")}**

{per_photograph}

## Limits

{_losses(results)}
- The noise is synthetic and drawn from the model that training used; a real sensor has defects that it leaves out
  (hot pixels, photo-response non-uniformity, clipping at black, correlated noise).
- The truth is an 8-bit photograph with its own noise, compression and rounding. At low gain that bounds what can be
  measured, and a denoiser that removes the photograph's grain is charged for it.
- {len(photographs.PHOTOGRAPHS)} photographs, {held_out} of them held out: the comparison of the variants holds for
  these scenes under this model, and says little about others.
- The range over seeds is that of training, on the same held-out frames; it is not a confidence interval over scenes.
- The readings are unbiased by construction; a border with a light leak would break that.
- Conditions outside the ranges above were never seen.
"""
