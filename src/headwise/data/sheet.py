"""Contact sheets: some images of a task with their class names, as one picture. Numpy and PIL.

Legend: N images, S the side of an image on the sheet.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from headwise.data.pixels import Pixels
from headwise.data.tasks import VTABTask

TITLE, CAPTION, GAP = 22, 14, 6
"""Heights of the title and of a caption, and the space around images, in pixels."""
PAPER, INK = (255, 255, 255), (30, 30, 30)


def contact_sheet(pixels: Pixels, task: VTABTask, title: str, columns: int, side: int) -> Image.Image:
    """Lay images, (N, H, W, C), out in rows of so many columns, ordered by class, each above its class name.

    Images of less than S = `side` are enlarged without smoothing. A task without names shows numbers. What of the title
    does not fit is cut off.
    """
    several = pixels.labels.ndim == 2
    # of several labels the first decides the order; argmax of none is the first class, which does no harm
    order = np.argsort(pixels.labels.argmax(1) if several else pixels.labels, kind="stable")
    columns = min(columns, max(1, len(order)))
    rows = -(-len(order) // columns)
    font, small = ImageFont.load_default(13), ImageFont.load_default(10)
    width = max(columns * (side + GAP) + GAP, 160)
    sheet = Image.new("RGB", (width, TITLE + rows * (side + CAPTION + GAP) + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 4), _fitted(title, font, width - 2 * GAP), fill=INK, font=font)
    for place, number in enumerate(order):
        x = GAP + place % columns * (side + GAP)
        y = TITLE + place // columns * (side + CAPTION + GAP)
        image = pixels.images[number]
        picture = Image.fromarray(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image)
        sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y))
        pen.text((x, y + side + 1), _fitted(_caption(task, pixels.labels[number]), small, side), fill=INK, font=small)
    return sheet


def _caption(task: VTABTask, label: NDArray[np.int64]) -> str:
    numbers = np.flatnonzero(label) if label.ndim else [label]
    return "|".join(_name(task, int(number)) for number in numbers)


def _name(task: VTABTask, label: int) -> str:
    text = task.class_names[label] if task.class_names else str(label)
    return text.encode("ascii", "replace").decode()


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, or as much of it as fits, ending in two dots."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}..") > width:
        text = text[:-1]
    return f"{text}.."
