"""The reference model: noise model, photographs and split, network, checkpoint, data sheet."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference model is a PyTorch network")

from models.raw_denoiser import datasheet, metrics, network, photographs, picture, sensor, train  # noqa: E402
from models.raw_denoiser.batches import BatchSource  # noqa: E402
from models.raw_denoiser.checkpoint import CHECKPOINT, FOLDER, RESULTS, load_checkpoint, save_checkpoint  # noqa: E402
from msconv_deploy.errors import BadInputError, NotAvailableError  # noqa: E402
from msconv_deploy.nn import MSConv2d  # noqa: E402

needs_photographs = pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None, reason="the photographs come from scikit-image: not installed"
)
needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="the picture is drawn by matplotlib: not installed"
)

MILD = sensor.Conditions(gain=4.0, read_noise=2.0, exposure=0.01, temperature=20.0)
STRONG = sensor.Conditions(gain=16.0, read_noise=4.0, exposure=1.0, temperature=50.0)


@pytest.fixture(scope="module")
def shipped() -> network.RawDenoiser:
    return load_checkpoint()


def inputs(batch: int, height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Random inputs of the network with readings and scalars of realistic size."""
    g = torch.Generator().manual_seed(seed)
    return (
        torch.rand(batch, 4, height, width, generator=g),
        0.01 * torch.randn(batch, 2, height, generator=g),
        0.01 * torch.randn(batch, 2, width, generator=g),
        2 * torch.rand(batch, 4, generator=g) - 1,
    )


def flat(value: float, height: int = 256, width: int = 256) -> np.ndarray:
    return np.full((4, height, width), value)


# ---- sensor model


@pytest.mark.parametrize("conditions", [MILD, STRONG, replace(MILD, gain=1.0), replace(MILD, gain=64.0)])
def test_variance_follows_the_law(conditions: sensor.Conditions) -> None:
    """Poisson-Gaussian: measured variance of a flat field against the formula, far from saturation.

    The tolerance covers the few hundred row and column offsets whose variance is estimated.
    """
    for level in (0.02, 0.3):
        noise = sensor.capture(flat(level), conditions, np.random.default_rng(1)).nchw - level
        assert np.var(noise) == pytest.approx(sensor.pixel_variance(level, conditions), rel=0.04)


def test_variance_grows_linearly_with_the_signal_with_slope_one_over_white_level() -> None:
    no_offsets = replace(sensor.Sensor(), row_ratio=0.0, column_ratio=0.0, column_dark_ratio=0.0)
    levels = np.array([0.05, 0.1, 0.2, 0.4])
    rng = np.random.default_rng(2)
    variances = [np.var(sensor.capture(flat(x), MILD, rng, no_offsets).nchw) for x in levels]
    slope, intercept = np.polyfit(levels, variances, 1)
    assert slope == pytest.approx(MILD.gain / no_offsets.full_well, rel=0.03)
    assert intercept > 0


def test_mean_is_kept_and_saturation_clips() -> None:
    rng = np.random.default_rng(3)
    assert sensor.capture(flat(0.3), STRONG, rng).nchw.mean() == pytest.approx(0.3, abs=2e-3)
    assert sensor.capture(flat(1.0), STRONG, rng).nchw.max() == 1.0


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_offsets_are_constant_along_their_line_and_readable(axis: str) -> None:
    """With photon and pixel noise averaged out, what is left of a frame is the offset, and the reading predicts it."""
    quiet = {"row_ratio": 0.0} if axis == "columns" else {"column_ratio": 0.0, "column_dark_ratio": 0.0}
    model = replace(sensor.Sensor(), **quiet)
    frame = sensor.capture(flat(0.0, 192, 192), STRONG, np.random.default_rng(4), model)
    mosaic = sensor.unpack(frame.nchw)
    along, across = (1, 0) if axis == "rows" else (0, 1)
    white = sensor.white_electrons(STRONG, model)
    sigma = sensor.row_sigma(STRONG, model) if axis == "rows" else sensor.column_sigma(STRONG, model)
    offsets = mosaic.mean(axis=along)
    assert np.std(offsets) == pytest.approx(sigma / white, rel=0.15)
    assert np.std(mosaic.mean(axis=across)) < 0.3 * np.std(offsets)
    # one half of a line predicts the other half: the offset is the same all along it
    first, second = np.split(mosaic, 2, axis=along)
    assert np.corrcoef(first.mean(axis=along), second.mean(axis=along))[0, 1] > 0.85
    # reading [2, L] -> sensor lines in order: line 2i is reading 0, line 2i+1 is reading 1
    reading = (frame.nch if axis == "rows" else frame.ncw).T.reshape(-1)
    noise = np.sqrt((STRONG.read_noise**2 + sensor.dark_electrons(STRONG, model)) / model.black_pixels) / white
    assert np.std(reading - offsets) == pytest.approx(noise, rel=0.15)


def test_dark_current_doubles() -> None:
    model = sensor.Sensor()
    warm = replace(MILD, temperature=MILD.temperature + model.dark_doubling)
    assert sensor.dark_electrons(warm) == pytest.approx(2 * sensor.dark_electrons(MILD))
    assert sensor.dark_electrons(replace(MILD, exposure=3 * MILD.exposure)) == pytest.approx(
        3 * sensor.dark_electrons(MILD)
    )


def test_noise_is_seeded() -> None:
    a, b, c = (sensor.capture(flat(0.2, 8, 8), MILD, np.random.default_rng(s)) for s in (5, 5, 6))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(a.nchw, c.nchw)


def test_conditions_are_normalised_to_the_ends_of_the_ranges() -> None:
    ends = {name: (r.low, r.high) for name, r in sensor.RANGES.items()}
    for end, expected in ((0, -1.0), (1, 1.0)):
        conditions = sensor.Conditions(**{name: pair[end] for name, pair in ends.items()})
        assert sensor.normalise(conditions) == pytest.approx([expected] * 4)


# ---- Bayer mosaic and transfer curve


def test_pack_and_unpack() -> None:
    mosaic = np.random.default_rng(0).random((10, 6))
    packed = sensor.pack(mosaic)
    assert packed.shape == (4, 5, 3)
    assert np.array_equal(sensor.unpack(packed), mosaic)
    with pytest.raises(ValueError, match="even"):
        sensor.pack(mosaic[:9])


def test_mosaic_is_rggb() -> None:
    rgb = np.broadcast_to(np.array([0.1, 0.2, 0.3]), (4, 6, 3))
    packed = sensor.pack(sensor.mosaic(rgb))
    assert np.array_equal(packed, np.broadcast_to(np.array([0.1, 0.2, 0.2, 0.3])[:, None, None], (4, 2, 3)))


def test_transfer_curve_round_trip() -> None:
    codes = np.arange(256) / 255
    assert sensor.linear_to_srgb(sensor.srgb_to_linear(codes)) == pytest.approx(codes, abs=1e-6)
    assert sensor.srgb_to_linear(np.array([0.5]))[0] == pytest.approx(0.21404, abs=1e-5)


def test_demosaic_keeps_flat_colour() -> None:
    colour = np.array([0.1, 0.5, 0.9])
    image = picture.demosaic(sensor.mosaic(np.broadcast_to(colour, (6, 8, 3))))
    assert image == pytest.approx(np.broadcast_to(colour, (6, 8, 3)))


# ---- photographs


def test_split_is_by_scene() -> None:
    by_split = {split: {p.scene for p in photographs.of_split(split)} for split in photographs.SPLITS}
    names = {split: {p.name for p in photographs.of_split(split)} for split in photographs.SPLITS}
    for a in photographs.SPLITS:
        for b in photographs.SPLITS:
            if a != b:
                assert not by_split[a] & by_split[b]
                assert not names[a] & names[b]
    assert sum(len(photographs.of_split(split)) for split in photographs.SPLITS) == len(photographs.PHOTOGRAPHS)
    assert len(by_split["held-out"]) >= 2
    assert {p.split for p in photographs.PHOTOGRAPHS if p.scene == "motorcycle"} == {"train"}


@needs_photographs
def test_training_never_opens_other_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    load = photographs.load
    monkeypatch.setattr(photographs, "load", lambda p: opened.append(p) or load(p))
    BatchSource(seed=0, batch_size=1, patch=8)
    assert set(opened) == set(photographs.of_split("train"))


@needs_photographs
@pytest.mark.parametrize("photograph", photographs.PHOTOGRAPHS, ids=lambda p: p.label)
def test_photographs_load(photograph: photographs.Photograph) -> None:
    image = photographs.load(photograph)
    assert image.dtype == np.float32
    assert image.shape[0] % 2 == image.shape[1] % 2 == 0
    assert image.shape[2] == 3
    assert image.min() >= 0
    assert image.max() <= 1
    assert image.std() > 0.01


def test_missing_scikit_image_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("skimage", "skimage.data"):
        monkeypatch.setitem(sys.modules, name, None)
    assert train.main(["--steps", "1", "--checkpoint", str(tmp_path / "out.safetensors")]) == 3
    assert not list(tmp_path.iterdir())
    assert "pip install scikit-image" in capsys.readouterr().err


@needs_photographs
def test_batches_repeat_with_the_seed() -> None:
    a, b, c = (BatchSource(seed, batch_size=2, patch=8).next() for seed in (7, 7, 8))
    assert torch.equal(a.nchw, b.nchw)
    assert torch.equal(a.clean, b.clean)
    assert not torch.equal(a.clean, c.clean)
    assert [tuple(t.shape) for t in (a.clean, *a.inputs)] == [(2, 4, 8, 8), (2, 4, 8, 8), (2, 2, 8), (2, 2, 8), (2, 4)]
    assert {t.dtype for t in (a.clean, *a.inputs)} == {torch.float32}


# ---- network and checkpoint


@pytest.mark.parametrize("variant", network.VARIANTS)
@pytest.mark.parametrize("size", [(1, 5, 3), (4, 17, 32), (2, 1, 1), (1, 2, 40)])
def test_any_size(variant: str, size: tuple[int, int, int]) -> None:
    batch, height, width = size
    with torch.no_grad():
        result = network.seeded(variant, 0)(*inputs(batch, height, width))
    assert result.shape == (batch, 4, height, width)
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("variant", network.VARIANTS)
def test_frames_of_a_batch_do_not_mix(variant: str) -> None:
    model, batch = network.seeded(variant, 0).eval(), inputs(4, 9, 7)
    with torch.no_grad():
        together = model(*batch)
        alone = torch.cat([model(*(source[i : i + 1] for source in batch)) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize(("variant", "reads"), [("image-only", False), ("tile-concat", True), ("msconv", True)])
def test_which_variant_reads_metadata(variant: str, reads: bool) -> None:
    model = network.seeded(variant, 0).eval()
    sources = inputs(1, 9, 7)
    with torch.no_grad():
        before = model(*sources)
        for index in (1, 2, 3):
            changed = [source + (i == index) * 0.5 for i, source in enumerate(sources)]
            assert torch.equal(model(*changed), before) is not reads


def test_unknown_variant() -> None:
    with pytest.raises(ValueError, match="image-only, tile-concat, msconv"):
        network.RawDenoiser(variant="msconv2d")


def test_network_file_stands_alone() -> None:
    """Export recipes load it by path, without the package around it."""
    spec = importlib.util.spec_from_file_location("raw_denoiser_network", FOLDER / "network.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.RawDenoiser(variant="msconv")(*inputs(1, 4, 4)).shape == (1, 4, 4, 4)
    assert "models." not in (FOLDER / "network.py").read_text(encoding="utf-8").replace("`models.", "")


def test_two_configurations_of_msconv2d(shipped: network.RawDenoiser) -> None:
    layers = [m for m in shipped.modules() if isinstance(m, MSConv2d)]
    assert len(layers) == 2
    assert layers[0].dilation != layers[1].dilation
    assert [c > 0 for c in layers[0].in_channels] == [True] * 4


def test_checkpoint_is_small_fp32_and_complete(shipped: network.RawDenoiser) -> None:
    from safetensors.torch import load_file

    assert CHECKPOINT.stat().st_size < 2_000_000
    state = load_file(CHECKPOINT)
    assert {t.dtype for t in state.values()} == {torch.float32}
    assert all(torch.isfinite(t).all() for t in state.values())
    assert {f"head.{name}_block.weight" for name in ("nchw", "nch", "ncw", "nc")} <= set(state)
    assert set(state) == set(shipped.state_dict())


def test_wrong_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAvailableError, match=r"models\.raw_denoiser\.train"):
        load_checkpoint(tmp_path / "absent.safetensors")
    other = tmp_path / "other.safetensors"
    save_checkpoint(network.seeded("tile-concat", 0), other)
    with pytest.raises(BadInputError, match="nchw_block"):
        load_checkpoint(other)
    other.write_bytes(b"not a checkpoint")
    with pytest.raises(BadInputError, match="not a safetensors file"):
        load_checkpoint(other)


# ---- does it denoise?


@needs_photographs
@pytest.mark.parametrize("photograph", photographs.of_split("held-out"), ids=lambda p: p.label)
def test_denoises_a_held_out_crop(shipped: network.RawDenoiser, photograph: photographs.Photograph) -> None:
    clean = sensor.pack(sensor.mosaic(photographs.load(photograph)))[:, 40:104, 60:124]
    conditions = sensor.Conditions(gain=64.0, read_noise=4.0, exposure=0.5, temperature=45.0)
    frame = sensor.capture(clean, conditions, np.random.default_rng(9))
    noisy, denoised = (metrics.psnr(image, clean) for image in (frame.nchw, metrics.denoise(shipped, frame)))
    assert denoised > noisy + 6


@needs_photographs
def test_every_source_matters(shipped: network.RawDenoiser) -> None:
    """Taking the right metadata away, one source at a time, costs PSNR on a held-out photograph."""
    photograph = photographs.of_split("held-out")[0]
    clean = sensor.pack(sensor.mosaic(photographs.load(photograph)))[:, :96, :96]
    conditions = sensor.Conditions(gain=32.0, read_noise=5.0, exposure=0.8, temperature=50.0)
    frame = sensor.capture(clean, conditions, np.random.default_rng(10))
    right = metrics.psnr(metrics.denoise(shipped, frame), clean)
    for name in ("nch", "ncw", "nc"):
        wrong = frame._replace(**{name: np.zeros_like(getattr(frame, name))})
        assert metrics.psnr(metrics.denoise(shipped, wrong), clean) < right - 0.05, name


# ---- results, data sheet and picture


def test_data_sheet_is_the_one_that_the_results_give() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    sheet = (FOLDER / "DATASHEET.md").read_text(encoding="utf-8")
    assert sheet == datasheet.render(results, CHECKPOINT.stat().st_size)
    assert {(r["variant"], r["seed"]) for r in results["runs"]} == {(v, s) for v in network.VARIANTS for s in range(3)}
    for photograph in photographs.of_split("held-out"):
        assert photograph.licence in sheet


@pytest.mark.parametrize(
    ("shifts", "expected"),
    [((0.1, 0.2), "is better than"), ((-0.1, -0.2), "is worse than"), ((0.1, -0.2), "are not told apart")],
)
def test_verdict_says_what_the_numbers_say(shifts: tuple[float, float], expected: str) -> None:
    def run(variant: str, seed: int, value: float) -> dict:
        return {"variant": variant, "seed": seed, "held_out": {"p": {"1": {"linear": value}}}}

    runs = [run("tile-concat", s, 30.0) for s in (0, 1)]
    runs += [run("msconv", s, 30.0 + shift) for s, shift in enumerate(shifts)]
    assert expected in datasheet.verdict({"evaluation": {"gains": [1.0]}, "runs": runs}, "msconv", "tile-concat")


@needs_photographs
def test_recorded_psnr_is_the_checkpoints(shipped: network.RawDenoiser) -> None:
    """One frame of the study, measured again: results.json and the checkpoint belong together."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    (run,) = (r for r in results["runs"] if (r["variant"], r["seed"]) == ("msconv", 0))
    measured = metrics.psnr_by_gain(shipped, "held-out", [64.0], results["evaluation"]["frames"])
    for label, by_gain in measured.items():
        assert by_gain["64"]["linear"] == pytest.approx(run["held_out"][label]["64"]["linear"], abs=0.02)


@needs_photographs
@needs_matplotlib
def test_picture(shipped: network.RawDenoiser, tmp_path: Path) -> None:
    picture.draw(shipped, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert (FOLDER / "noisy_denoised_truth.png").stat().st_size < 700_000
