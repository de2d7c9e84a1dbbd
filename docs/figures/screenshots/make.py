"""The screenshots of the documentation. After `make docs`, with Playwright, Pillow and a Chromium,

    python docs/figures/screenshots/make.py MODEL.onnx CHROMIUM

writes them anew: MODEL.onnx is optimized for the picture of its report. They are brought down to few colours, to be small.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
SITE = ROOT / "build" / "site"
WIDTH = 1280
COLOURS = 128
PAGES = {
    "rules": ("reference/rules.html", "unfold-matmul", 1150),
    "layers": ("reference/python/nn.html", "msconv_deploy.nn.msconv2d.MSConv2d", 1000),
}
"""Name of the picture -> page, anchor at its top, height."""


def main(model: Path, chromium: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(color_scheme="light")
        shutil.copy(model, folder)  # the report names files as they are given
        command = ["optimize", model.name, "-o", f"{model.stem}.optimized.onnx", "--html", "report.html", "-q"]
        subprocess.run([ROOT / ".venv" / "bin" / "msconv", *command], cwd=folder, check=True)
        shoot(page, (Path(folder) / "report.html").as_uri(), 1280, "report")
        for name, (place, anchor, height) in PAGES.items():
            shoot(page, f"{(SITE / place).as_uri()}#{anchor}", height, name)
        browser.close()


def shoot(page: Page, address: str, height: int, name: str) -> None:
    """A picture of the window at an address."""
    picture = FOLDER / f"{name}.png"
    page.set_viewport_size({"width": WIDTH, "height": height})
    page.goto(address)
    page.wait_for_timeout(1000)
    page.screenshot(path=picture)
    with Image.open(picture) as image:
        image.convert("RGB").quantize(COLOURS).save(picture, optimize=True)
    print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
