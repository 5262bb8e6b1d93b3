"""A trained network with its preprocessing: images, files and folders in, classes out.

Legend: B batch, C channels of an image (3, or 1 for grey tasks), K classes, S side of the square that the network sees.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from headwise.data.decode import NATIVE_LIMIT, RESIZES, decode, squared, to_channels
from headwise.data.notices import say_once
from headwise.data.own import notes
from headwise.data.preparation import Preparation
from headwise.data.stored import BROKEN, Reading, facts, read
from headwise.data.stores.classfolders import images_below
from headwise.data.stores.listfiles import SUFFIXES
from headwise.data.tasks import VTABTask
from headwise.data.vtab import to_tensor
from headwise.errors import ConfigError, DataError
from headwise.network.backbone import Backbone, BackboneSpec
from headwise.results.records import Result
from headwise.storage import atomic

Images = Any
"""A PIL image, a path, a numpy array, a sequence of these, or a uint8 tensor (B, C, H, W)."""
TAKEN = "PIL images, paths, sequences of them, or a uint8 tensor (B, C, H, W)"
ARRAY = "a uint8 array (H, W), (H, W, C) or (B, H, W, C) with 1, 3 or 4 channels"
AT_ONCE = 64
"""Images of a folder that pass the network together."""
COLUMNS = ("path", "index", "name", "probability")


@dataclass(frozen=True)
class OwnClasses:
    """What a network of the user's own tells apart: of a task, what a `Classifier` reads.

    Attributes:
        num_classes: K.
        class_names: in the order of the logits; empty if unknown.
        channels: 3, or 1 for grey images.
        depth: bits of a value of images of more than 8 bits; None: what each needs.
    """

    num_classes: int
    class_names: tuple[str, ...] = ()
    channels: int = 3
    depth: int | None = None


@dataclass(frozen=True)
class Guess:
    """What a network says an image is.

    Attributes:
        index: of the class.
        name: of the class, its number where the task knows no names.
        probability: softmax, 0..1; of a task whose images have several labels, the class's own (a sigmoid).
        also: of such a task the other classes of a probability of at least 1/2, the most probable first.
    """

    index: int
    name: str
    probability: float
    also: tuple[Guess, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Prediction(Guess):
    """What a network says a file is.

    Attributes:
        path: of the file, below the folder that was asked about.
    """

    path: str


class Classifier(nn.Module):
    """A trained network with the preprocessing it was trained with. It can be copied and pickled.

    Attributes:
        net: the Backbone.
        task: what it classifies; its `class_names` may be empty.
        preparation: how images become input.
        result: the record of the run; None where there was none.
        spec: of a network that has a name.
    """

    def __init__(
        self,
        net: Backbone,
        task: VTABTask | OwnClasses,
        preparation: Preparation,
        result: Result | None = None,
        spec: BackboneSpec | None = None,
    ) -> None:
        super().__init__()
        self.net, self.task, self.preparation, self.result, self.spec = net, task, preparation, result, spec

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (B, K), for normalised images (B, 3, S, S), such as `preprocess` gives."""
        return self.net(x)

    def preprocess(self, images: Images) -> Tensor:
        """Bring images to what the network takes, as in training.

        Args:
            images: a PIL image, the path of one, an array, a sequence of these, or a uint8 batch (B, C, H, W). Arrays
                are uint8: (H, W), (H, W, C), or a batch (B, H, W, C). Images are turned upright by their EXIF
                orientation, and values of more than 8 bits scaled as the run did; of a colour PIL keeps 8 bits, so
                give the path of such a file.

        Returns:
            (B, 3, S, S), normalised, on the network's device and in its type; B is 0 for an empty sequence.

        Raises:
            DataError: if an image cannot be read.
        """
        weight: Tensor = getattr(self.net.head, "weight", next(self.net.parameters()))
        size = self.preparation.img_size
        if isinstance(images, np.ndarray) and images.ndim == 4:
            images = list(images)
        if isinstance(images, Tensor):
            if images.shape[-1] != images.shape[-2] and self.preparation.shape != "squash":
                raise DataError(
                    f"the run was trained with data.resize={self.preparation.shape}; a batch (B, C, H, W) must be of "
                    f"squares, got {tuple(images.shape)}: give files or arrays (H, W, C)"
                )
            return self.preparation(images.to(weight.device)).to(weight.dtype)
        several = images if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]
        none = torch.zeros(0, 3, size, size, device=weight.device)
        return torch.cat([none, *(self._one(image).to(weight.device) for image in several)]).to(weight.dtype)

    def _one(self, image: Any) -> Tensor:
        channels, reading = self.task.channels, Reading(self.task.depth)
        if isinstance(image, np.ndarray):
            image = _of_array(image)
        if not isinstance(image, Image.Image | str | Path):
            raise DataError(f"classify takes {TAKEN}, got {type(image).__name__}")
        file = image if isinstance(image, Image.Image) else Path(image)
        for line in notes(facts(file), self.task.depth):
            say_once(f"classify: {line}")
        if isinstance(file, Image.Image):
            try:
                pixels = to_channels(read(file, None, reading), channels)
            except BROKEN as error:
                raise DataError(f"classify: the image cannot be used ({error})") from error
        else:
            pixels = decode(file, channels, "classify", reading)
        pixels = squared(pixels, self.preparation.shape)
        if max(pixels.shape[:2]) > NATIVE_LIMIT:
            pixels = RESIZES[self.preparation.resize](pixels, self.preparation.side)
        return self.preparation(to_tensor(pixels[None]))

    @torch.no_grad()
    def probabilities(self, images: Images) -> Tensor:
        """Softmax over the classes, (B, K) float32, of the network in evaluation mode; of several labels sigmoids.

        Raises:
            ConfigError: while a network that came without a classifier is used bare.
        """
        if not self.task.num_classes:
            raise ConfigError("the network has no classifier; take an adapter with use(NAME)")
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            x = self.preprocess(images)
            # timm's EVA and BEiT take no empty batch
            logits = self(x) if len(x) else x.new_zeros(0, self.net.head.out_features)
            return logits.float().sigmoid() if self.is_multi_label else logits.float().softmax(dim=-1)
        finally:
            for module, mode in modes:
                module.training = mode

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have several of the classes."""
        return bool(getattr(self.task, "multi_label", False))

    def classify(self, images: Images) -> list[Guess]:
        """The most probable class of each image; where it may have several, the others are in `Guess.also`."""
        names = self.task.class_names or [str(index) for index in range(self.task.num_classes)]
        probabilities = self.probabilities(images)
        if self.is_multi_label:
            return [_several(row, names) for row in probabilities.cpu()]
        best = probabilities.max(dim=-1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [Guess(index, names[index], probability) for index, probability in pairs]

    def predict_folder(self, folder: str | Path, csv_file: str | Path | None = None) -> list[Prediction]:
        """The most probable class of every image below a folder, in the order of their paths.

        Args:
            folder: whose files with the ending of an image are taken, at any depth; hidden ones are not.
            csv_file: where to write the rows as well: path, index, name, probability. Where an image may have several
                classes it has a line for its most probable one, and one for each other of at least 1/2.

        Raises:
            DataError: if there is no image below the folder, or one cannot be read.
        """
        root = Path(folder)
        paths = sorted(images_below(root))
        if not paths:
            raise DataError(f"{str(root)!r} holds no image; looked for names that end in {', '.join(SUFFIXES)}")
        rows = [
            Prediction(guess.index, guess.name, guess.probability, path, also=guess.also)
            for some in (paths[start : start + AT_ONCE] for start in range(0, len(paths), AT_ONCE))
            for path, guess in zip(some, self.classify([root / path for path in some]), strict=True)
        ]
        if csv_file is not None:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            cells = [[row.path, one.index, one.name, one.probability] for row in rows for one in (row, *row.also)]
            writer.writerows([COLUMNS, *cells])
            atomic.write_text(Path(csv_file), text.getvalue())
        return rows


def _several(row: Tensor, names: Sequence[str]) -> Guess:
    """What probabilities (K,) of classes that exclude nothing say of an image."""
    order = row.argsort(descending=True, stable=True).tolist()
    first, *others = (Guess(index, names[index], float(row[index])) for index in order)
    return dataclasses.replace(first, also=tuple(guess for guess in others if guess.probability >= 0.5))


def _of_array(array: np.ndarray[Any, Any]) -> Image.Image:
    """An array as an image; refused if it is none."""
    shape = array.shape[:-1] if array.ndim == 3 and array.shape[-1] == 1 else array.shape
    is_image = len(shape) == 2 or (len(shape) == 3 and shape[-1] in (3, 4))
    if array.dtype != np.uint8 or not is_image or 0 in shape:
        raise DataError(f"classify takes of arrays {ARRAY}, got {array.dtype} {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array.reshape(shape)))
