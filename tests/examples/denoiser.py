"""The reference denoiser as an ONNX file, and sample frames, for tests."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def export_denoiser(folder: Path) -> Path:
    """The shipped checkpoint in portable form, fp32; skips where torch is missing."""
    pytest.importorskip("torch", reason="the denoiser is exported from its checkpoint: needs torch")
    from msconv_deploy.exporting import export_recipe, load_recipe

    recipe = load_recipe(ROOT / "export" / "raw_denoiser.toml").replaced(forms=["portable"], precision=["fp32"])
    export_recipe(recipe, folder, validate=False, build_check=False)
    return folder / "raw_denoiser" / "raw_denoiser.portable.fp32.onnx"


def make_frames(folder: Path, count: int = 6, size: int = 96) -> list[Path]:
    """Sample frames with their truth; skips where the photographs are missing."""
    pytest.importorskip("skimage", reason="the photographs come from scikit-image")
    pytest.importorskip("PIL", reason="frames are PNG files, read by Pillow")
    from examples import make_frames

    return make_frames.make_frames(folder, count, size, truth=True)


def check_results(frames: list[Path], results: Path, model: Path) -> None:
    """Every result is what a direct run gives, within the file's rounding, and closer to the truth than the frame is."""
    import numpy as np
    import onnxruntime

    from examples.frames import read_frame
    from models.raw_denoiser import sensor
    from models.raw_denoiser.metrics import psnr

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    for path in frames:
        frame, result = read_frame(path), results / path.name
        (direct,) = session.run(None, frame.inputs)
        expected = sensor.unpack(direct[0].astype(np.float64)) * (frame.white - frame.black) + frame.black
        found = _mosaic(result)
        assert found.dtype == np.uint16
        assert np.abs(found - expected).max() <= 0.51, path  # half a step, and rounding of joined requests
        truth = np.load(path.parent / "truth" / f"{path.stem}.npy")
        noisy = sensor.unpack(frame.inputs["nchw"][0])
        clean = (found - frame.black) / (frame.white - frame.black)
        assert psnr(clean, truth) > psnr(noisy, truth) + 1, path


def _mosaic(path: Path):
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(path))
