"""A published noise model of an image sensor, and the packing of its Bayer mosaic. NumPy only.

Units: electrons (e-), seconds, degrees Celsius. Images are linear in light; 0 is black, 1 is the saturation level at
the gain in use.

The model. A clean value x at gain g stands for ``x * S`` electrons, where ``S = full_well / g``. A frame is

    y = min(1, round_adc( (P - D + R + r_row + c_column) / S ))

    P ~ Poisson(x S + D)        photon and dark-current shot noise
    R ~ Normal(0, read_noise)   read noise, one draw per pixel
    r ~ Normal(0, row_noise)    banding, one draw per sensor row and frame
    c ~ Normal(0, column_noise) column fixed pattern, one draw per sensor column
    D = D_ref t 2^((T - T_ref) / T_double)   dark electrons, exposure t, temperature T

so that, away from saturation and apart from the ADC's 1/12 LSB^2, ``var(y) = x/S + (D + read^2 + row^2 + col^2)/S^2``:
linear in the signal (the Poisson-Gaussian law of [1]) and growing with gain. Row noise as a Gaussian offset per row,
and rounding, follow [2]; dark current, its doubling temperature and the column-wise dark-signal non-uniformity, which
grows with the dark signal, follow [3]. The mean dark signal D is subtracted, as black-level correction does. The
pedestal is taken to be high enough that nothing is clipped at black.

[1] A. Foi, M. Trimeche, V. Katkovnik, K. Egiazarian. Practical Poissonian-Gaussian noise modeling and fitting for
    single-image raw-data. IEEE Transactions on Image Processing 17(10), 2008.
[2] K. Wei, Y. Fu, J. Yang, H. Huang. A physics-based noise formation model for extreme low-light raw denoising.
    CVPR 2020.
[3] EMVA Standard 1288, Standard for Characterization of Image Sensors and Cameras. European Machine Vision
    Association.

The constants below are plausible for a small sensor with strong banding; they are not fitted to a particular camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sensor:
    """Constants of the model."""

    full_well: float = 4000.0  #: electrons at saturation, gain 1
    dark_rate: float = 4.0  #: dark current at the reference temperature, e-/s
    dark_reference: float = 25.0  #: reference temperature, degrees Celsius
    dark_doubling: float = 8.0  #: degrees Celsius over which the dark current doubles
    row_ratio: float = 0.5  #: standard deviation of the row offset / read noise
    column_ratio: float = 0.3  #: standard deviation of the column offset / read noise, in the dark limit
    column_dark_ratio: float = 0.05  #: the part of it that grows with the dark signal: standard deviation / D
    black_pixels: int = 16  #: optically black pixels averaged for one reading of a row or a column
    adc_bits: int = 14


@dataclass(frozen=True)
class Conditions:
    """How a frame was taken: what a camera writes into the frame's metadata."""

    gain: float  #: analogue gain over base sensitivity; 1 is about ISO 100
    read_noise: float  #: standard deviation in electrons
    exposure: float  #: seconds
    temperature: float  #: of the sensor, degrees Celsius


class Range(NamedTuple):
    low: float
    high: float
    logarithmic: bool


#: What training and evaluation draw from, and what the scalars are normalised with. Order = the channels of nc.
RANGES = {
    "gain": Range(1.0, 64.0, True),
    "read_noise": Range(1.5, 6.0, True),
    "exposure": Range(1e-3, 1.0, True),
    "temperature": Range(-10.0, 60.0, False),
}


class Capture(NamedTuple):
    """One frame as the network sees it, float32, without the batch axis."""

    nchw: NDArray[np.float32]  #: [4, H, W] noisy packed mosaic
    nch: NDArray[np.float32]  #: [2, H] row readings, in the units of nchw
    ncw: NDArray[np.float32]  #: [2, W] column readings, in the units of nchw
    nc: NDArray[np.float32]  #: [4] normalised conditions


def pack(mosaic: NDArray) -> NDArray:
    """RGGB mosaic [2H, 2W] -> packed [4, H, W], channels R, G1 (right of R), G2 (below R), B."""
    if mosaic.shape[0] % 2 or mosaic.shape[1] % 2:
        raise ValueError(f"a Bayer mosaic has even height and width, not {mosaic.shape}")
    return np.stack([mosaic[0::2, 0::2], mosaic[0::2, 1::2], mosaic[1::2, 0::2], mosaic[1::2, 1::2]])


def unpack(packed: NDArray) -> NDArray:
    """Packed [4, H, W] -> RGGB mosaic [2H, 2W]; the inverse of ``pack``."""
    _, height, width = packed.shape
    return packed.reshape(2, 2, height, width).transpose(2, 0, 3, 1).reshape(2 * height, 2 * width)


def mosaic(rgb: NDArray) -> NDArray:
    """Linear RGB [2H, 2W, 3] -> RGGB mosaic [2H, 2W]: keep at each pixel the colour of its filter."""
    result = rgb[..., 1].copy()
    result[0::2, 0::2] = rgb[0::2, 0::2, 0]
    result[1::2, 1::2] = rgb[1::2, 1::2, 2]
    return result


def srgb_to_linear(encoded: NDArray) -> NDArray:
    """Undo the sRGB transfer curve (IEC 61966-2-1); both in [0, 1]."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: NDArray) -> NDArray:
    """Apply the sRGB transfer curve (IEC 61966-2-1) to values clipped to [0, 1]."""
    clipped = np.clip(linear, 0.0, 1.0)
    return np.where(clipped <= 0.0031308, clipped * 12.92, 1.055 * clipped ** (1 / 2.4) - 0.055)


def draw_conditions(rng: np.random.Generator, gain: float | None = None) -> Conditions:
    """Conditions drawn uniformly, or log-uniformly, from ``RANGES``; the gain is drawn only if it is not given."""
    values = {}
    for name, (low, high, logarithmic) in RANGES.items():
        u = rng.random()
        values[name] = low * (high / low) ** u if logarithmic else low + (high - low) * u
    if gain is not None:
        values["gain"] = gain
    return Conditions(**values)


def normalise(conditions: Conditions) -> Array:
    """Conditions -> [4] in [-1, 1] over ``RANGES``, after the logarithm where the range is logarithmic."""
    result = []
    for name, (low, high, logarithmic) in RANGES.items():
        value = getattr(conditions, name)
        u = np.log(value / low) / np.log(high / low) if logarithmic else (value - low) / (high - low)
        result.append(2 * u - 1)
    return np.array(result)


def dark_electrons(conditions: Conditions, sensor: Sensor = Sensor()) -> float:
    """Mean dark signal per pixel in electrons: exposure times a dark current that doubles every few degrees."""
    doublings = (conditions.temperature - sensor.dark_reference) / sensor.dark_doubling
    return sensor.dark_rate * conditions.exposure * 2.0**doublings


def white_electrons(conditions: Conditions, sensor: Sensor = Sensor()) -> float:
    """Electrons that fill the range at this gain."""
    return sensor.full_well / conditions.gain


def row_sigma(conditions: Conditions, sensor: Sensor = Sensor()) -> float:
    """Standard deviation of the row offsets in electrons."""
    return sensor.row_ratio * conditions.read_noise


def column_sigma(conditions: Conditions, sensor: Sensor = Sensor()) -> float:
    """Standard deviation of the column offsets in electrons."""
    dark_part = sensor.column_dark_ratio * dark_electrons(conditions, sensor)
    return float(np.hypot(sensor.column_ratio * conditions.read_noise, dark_part))


def pixel_variance(clean: float, conditions: Conditions, sensor: Sensor = Sensor()) -> float:
    """Variance of one pixel around the clean value, without saturation: the formula in the module's docstring."""
    white = white_electrons(conditions, sensor)
    electrons = (
        clean * white
        + dark_electrons(conditions, sensor)
        + conditions.read_noise**2
        + row_sigma(conditions, sensor) ** 2
        + column_sigma(conditions, sensor) ** 2
    )
    return electrons / white**2 + 1 / (12 * (2**sensor.adc_bits - 1) ** 2)


def capture(clean: NDArray, conditions: Conditions, rng: np.random.Generator, sensor: Sensor = Sensor()) -> Capture:
    """Photograph a clean packed image [4, H, W] (values in [0, 1]) under the given conditions.

    A sensor row 2h holds R and G1 of packed row h, row 2h+1 holds G2 and B: two row offsets per packed row, and in
    the same way two column offsets per packed column (R and G2; G1 and B).

    The readings are what the border of optically black pixels tells: the mean of ``black_pixels`` pixels of the row
    (or column) that see no light, hence the offset plus a noise of variance ``(read_noise^2 + D) / black_pixels``.
    """
    _, height, width = clean.shape
    white = white_electrons(conditions, sensor)
    dark = dark_electrons(conditions, sensor)

    rows = rng.normal(0.0, row_sigma(conditions, sensor), (2, height))
    columns = rng.normal(0.0, column_sigma(conditions, sensor), (2, width))
    reading_sigma = np.sqrt((conditions.read_noise**2 + dark) / sensor.black_pixels)
    row_readings = rows + rng.normal(0.0, reading_sigma, rows.shape)
    column_readings = columns + rng.normal(0.0, reading_sigma, columns.shape)

    electrons = rng.poisson(clean * white + dark) - dark + rng.normal(0.0, conditions.read_noise, clean.shape)
    electrons += rows[[0, 0, 1, 1], :, None] + columns[[0, 1, 0, 1], None, :]
    levels = 2**sensor.adc_bits - 1
    noisy = np.minimum(np.round(electrons / white * levels) / levels, 1.0)
    return Capture(
        nchw=noisy.astype(np.float32),
        nch=(row_readings / white).astype(np.float32),
        ncw=(column_readings / white).astype(np.float32),
        nc=normalise(conditions).astype(np.float32),
    )
