"""Picture a report in headless Chromium, on a phone and a desk, light and dark: python scripts/picture_report.py.

Needs what the project does not: `pip install playwright`, and a chromium of the system's.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from headwise import atomic
from headwise.cli import force_option, script
from headwise.errors import ConfigError
from headwise.written import writing

VIEWS = {"phone": (390, 844), "desk": (1280, 800)}
SCHEMES = ("light", "dark")
COLORS = 128


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", nargs="?", type=Path, default=Path("outputs/report.html"), help="the page")
    parser.add_argument("--out", type=Path, default=Path("docs/report"), help="folder of the pictures (docs/report)")
    parser.add_argument("--screens", type=float, default=6.0, help="height of a picture, in screens (6)")
    force_option(parser)
    return parser.parse_args(arguments)


@script
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(arguments)
    if not options.report.is_file():
        raise ConfigError(f"{options.report} does not exist; run make report")
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        playwright = importlib.import_module("playwright.sync_api")
    except ImportError as error:
        raise ConfigError("playwright is not installed: pip install playwright") from error
    if browser is None:
        raise ConfigError("there is no chromium on the PATH: apt-get install chromium")
    files = [options.out / f"{name}-{scheme}.png" for name in VIEWS for scheme in SCHEMES]
    with writing(*files, force=options.force), playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        for name, (width, height) in VIEWS.items():
            for scheme in SCHEMES:
                size = {"width": width, "height": height}
                page = chromium.new_context(viewport=size, color_scheme=scheme).new_page()
                page.goto(options.report.resolve().as_uri())
                whole = page.evaluate("document.documentElement.scrollHeight")
                part = {"x": 0, "y": 0, "width": width, "height": min(whole, round(options.screens * height))}
                file = options.out / f"{name}-{scheme}.png"
                _save(page.screenshot(full_page=True, clip=part), file)
                print(f"written: {file} ({file.stat().st_size // 1024} KiB)")
        chromium.close()
    return 0


def _save(png: bytes, file: Path) -> None:
    """Few colours are enough for a page of text and lines."""
    with Image.open(BytesIO(png)) as image, atomic.replacing(file) as part:
        image.convert("RGB").quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            part, optimize=True
        )


if __name__ == "__main__":
    sys.exit(main())
