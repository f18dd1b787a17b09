"""Image files for the command line: read, scaled to what a network takes, written. PNG and JPEG need Pillow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepnet import ShapeError, nn

# Sides of square images that data sets have; see input_shape.
_USUAL_SIDES = (28, 8, 32, 16, 64, 96, 128, 224)


def input_shape(net: nn.Layer, size: str | None = None) -> tuple[int, int, int]:
    """(C, H, W) of the images that a network takes.

    Its first convolution tells C. H and W are not in the file, but of all square images only those of one size, or of
    a few, fit the first linear layer's in_features. `size`, as in "28x28", overrules that.
    """
    channels = next((layer.in_channels for layer in _leaves(net) if isinstance(layer, nn.Conv2d)), 1)
    if size is not None:
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
        if not match:
            raise ValueError(f"expected --size like 28x28, got {size!r}")
        return channels, int(match[1]), int(match[2])
    for side in (*_USUAL_SIDES, *range(1, 257)):
        shape = (channels, side, side)
        try:
            rows = net._summary((1, *shape))
        except ShapeError:
            continue
        if rows and rows[-1][2] is not None and 0 not in rows[-1][2]:
            return shape
    raise ValueError("the network does not tell the size of its images: give it as --size HxW")


def read_image(path: Path, shape: tuple[int, int, int], invert: bool = False) -> NDArray[np.float32]:
    """A picture as a batch (1, C, H, W) in [0, 1], scaled to the shape.

    An array in a .npy file must have the shape (H, W), (C, H, W) or (1, C, H, W); bytes are divided by 255.
    """
    channels, height, width = shape
    if path.suffix == ".npy":
        image = _read_array(path, shape)
    else:
        pillow = _pillow()
        with pillow.open(path) as file:
            picture = file.convert("L" if channels == 1 else "RGB").resize((width, height), pillow.Resampling.BOX)
        image = np.asarray(picture, np.float32) / np.float32(255.0)
        image = image[None] if channels == 1 else image.transpose(2, 0, 1)
        if image.shape != shape:
            raise ValueError(f"{path}: expected a network of 1 or 3 channels for image files, got {channels}")
    if invert:
        image = np.float32(1.0) - image
    return np.ascontiguousarray(image[None], np.float32)


def read_picture(path: Path) -> NDArray[np.float32]:
    """A picture's grey values (H, W) in [0, 1]."""
    with _pillow().open(path) as file:
        pixels: NDArray[np.float32] = np.asarray(file.convert("L"), np.float32) / np.float32(255.0)
    return pixels


def write_picture(path: Path, values: NDArray[np.float32]) -> None:
    """Grey values (H, W), of which those outside [0, 1] are cut."""
    pixels = np.round(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)
    _pillow().fromarray(pixels).save(path)


def _read_array(path: Path, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    image = np.load(path, allow_pickle=False)
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "biuf":
        raise TypeError(f"{path}: expected an array of real numbers")
    if image.ndim == 4 and len(image) == 1:
        image = image[0]
    if image.ndim == 2:
        image = image[None]
    if image.shape != shape:
        raise ShapeError(f"{path}: expected an array of shape {shape}, got {image.shape}")
    values: NDArray[np.float32] = image.astype(np.float32) / np.float32(255.0 if image.dtype == np.uint8 else 1.0)
    return values


def _leaves(net: nn.Layer) -> list[nn.Layer]:
    children = net.children()
    return [leaf for child in children for leaf in _leaves(child)] if children else [net]


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("image files need Pillow: pip install 'deepnet[image]'") from error
    return Image
