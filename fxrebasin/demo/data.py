"""Fashion-MNIST: the images to train on, the shipped test images, and the three shifted tasks.

Training reads the Debian package dataset-fashion-mnist (60,000 + 10,000 images). The demo itself reads only
the first 2,000 of the 10,000 test images, which are shipped with fxrebasin.
"""
from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import CheckpointError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SHIPPED = Path(__file__).parent / "checkpoints"
SHIPPED_TEST_IMAGES = 2000
MEAN, DEVIATION = 0.2860, 0.3530  # of the training images' pixels in [0, 1]


def load(split: str, folder: Path = DEBIAN) -> tuple[Tensor, Tensor]:
    """All images of a split, "train" or "t10k": uint8 (N, 28, 28), int64 (N,). CheckpointError if absent."""
    files = [folder / f"{split}-images-idx3-ubyte.gz", folder / f"{split}-labels-idx1-ubyte.gz"]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file, and training needs it: "
                                  "apt-get install dataset-fashion-mnist, or name its folder with --images")
    images, labels = (np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8) for file in files)
    images, labels = images[16:].reshape(-1, 28, 28), labels[8:]  # after the idx headers
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


def shipped_test_images(folder: Path = SHIPPED) -> tuple[Tensor, Tensor]:
    """The first 2,000 test images, shipped with fxrebasin: uint8 (2000, 28, 28), int64 (2000,)."""
    file = folder / "test_images.npz"
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file, it is part of fxrebasin: install the package again")
    with np.load(file, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"].astype(np.int64))


def rotated(pixels: Tensor) -> Tensor:
    """Turned by 45 degrees about the centre, black where nothing was; (N, 1, 28, 28) in [0, 1]."""
    c = math.sqrt(0.5)
    turn = torch.tensor([[c, -c, 0.0], [c, c, 0.0]]).expand(len(pixels), 2, 3)
    grid = F.affine_grid(turn, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False)


def inverted(pixels: Tensor) -> Tensor:
    """Dark for light."""
    return 1 - pixels


def flipped(pixels: Tensor) -> Tensor:
    """Upside down."""
    return pixels.flip(-2)


TASKS: dict[str, Callable[[Tensor], Tensor]] = {"rotated": rotated, "inverted": inverted, "flipped": flipped}


def prepare(images: Tensor, task: str | None = None) -> Tensor:
    """uint8 (N, 28, 28) to a network's input (N, 1, 28, 28), seen as in a task or (None) as they are."""
    pixels = images.unsqueeze(1).float() / 255
    if task is not None:
        pixels = TASKS[task](pixels)
    return (pixels - MEAN) / DEVIATION


LANGUAGES = {"da": "Danish", "it": "Italian", "fr": "French", "de": "German"}


def shipped_test_texts(folder: Path = SHIPPED) -> dict[str, tuple[Tensor, Tensor]]:
    """Language ("en" and the tasks) -> token ids (up to 2,000, 32) and labels, both int64; shipped with fxrebasin.

    Descriptions of Debian's packages and their translations, as pieces of words without a dictionary (see `debian`).
    """
    file = folder / "test_texts.npz"
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file, it is part of fxrebasin: install the package again")
    with np.load(file, allow_pickle=False) as arrays:
        def pair(language: str) -> tuple[Tensor, Tensor]:
            ids, labels = (arrays[f"{language}.{what}"].astype(np.int64) for what in ("ids", "labels"))
            return torch.from_numpy(ids), torch.from_numpy(labels)

        return {language: pair(language) for language in ("en", *LANGUAGES)}


def views(kind: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and labels of the shipped test data by view: "support", and every task of a network."""
    if kind == "text":
        texts = shipped_test_texts()
        texts = {"support": texts.pop("en"), **texts}
        return {view: ids for view, (ids, _) in texts.items()}, {view: labels for view, (_, labels) in texts.items()}
    images, labels = shipped_test_images()
    seen = {"support": prepare(images)} | {task: prepare(images, task) for task in TASKS}
    return seen, dict.fromkeys(seen, labels)
