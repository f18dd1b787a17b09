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
# A first layer of 64 filters makes 1 GiB of them; a network of convolutions only would take any number.
_MOST_PIXELS = 2048 * 2048


def input_shape(net: nn.Layer, size: str | None = None) -> tuple[int, int, int]:
    """(C, H, W) of the images that a network takes.

    Its first convolution tells C. H and W are not in the file, but of all square images only those of one size, or of
    a few, fit the first linear layer's in_features. `size`, as in "28x28", overrules that; the network must take it.
    """
    channels = next((layer.in_channels for layer in _leaves(net) if isinstance(layer, nn.Conv2d)), 1)
    if size is not None:
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
        if not match:
            raise ValueError(f"expected --size like 28x28, got {size!r}")
        height, width = int(match[1]), int(match[2])
        if not 0 < height * width <= _MOST_PIXELS:
            raise ValueError(f"expected --size of 1 to {_MOST_PIXELS:,} pixels, got {size}")
        net._summary((1, channels, height, width))
        return channels, height, width
    for side in (*_USUAL_SIDES, *range(1, 257)):
        shape = (channels, side, side)
        try:
            rows = net._summary((1, *shape))
        except ShapeError:
            continue
        if rows and rows[-1][2] is not None and 0 not in rows[-1][2]:
            return shape
    raise ValueError("the network does not tell the size of its images: give it as --size HxW")


def table_shape(net: nn.Layer) -> tuple[int, ...] | None:
    """Of one input, for the table of the layers; None where the weights do not tell."""
    leaves = _leaves(net)
    if isinstance(leaves[0], nn.Linear):
        return 1, leaves[0].in_features
    if not any(isinstance(leaf, nn.Linear) for leaf in leaves):
        return None  # a network of convolutions only takes images of any size
    try:
        return 1, *input_shape(net)
    except ValueError:
        return None


def read_image(path: Path, shape: tuple[int, int, int], invert: bool = False) -> NDArray[np.float32]:
    """A picture as a batch (1, C, H, W) in [0, 1], scaled to the shape.

    Where it is transparent it becomes 0, also if inverted. An array in a .npy file must have the shape (H, W),
    (C, H, W) or (1, C, H, W); bytes are divided by 255.
    """
    channels, height, width = shape
    if path.suffix == ".npy":
        image = _read_array(path, shape)
    elif channels in (1, 3):
        image = _read_pixels(path, channels, 255 if invert else 0, (width, height))
    else:
        raise ValueError(f"{path}: expected a network of 1 or 3 channels for image files, got {channels}")
    if invert:
        image = np.float32(1.0) - image
    return np.ascontiguousarray(image[None], np.float32)


def read_picture(path: Path) -> NDArray[np.float32]:
    """A picture's grey values (H, W) in [0, 1], on white where it is transparent."""
    pixels: NDArray[np.float32] = _read_pixels(path, channels=1, background=255)[0]
    return pixels


def write_picture(path: Path, values: NDArray[np.float32]) -> None:
    """Grey values (H, W), of which those outside [0, 1] are cut."""
    pixels = np.round(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)
    _pillow().fromarray(pixels).save(path)


def _read_pixels(
    path: Path, channels: int, background: int, size: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Grey or RGB values (C, H, W) in [0, 1], laid over a background of 0 to 255 and scaled to (width, height)."""
    pillow = _pillow()
    try:
        with pillow.open(path) as file:
            if file.mode.startswith("I"):
                # Convert would cut 16 bits at 255. Pillow scales them as floats only.
                picture, white = pillow.fromarray(np.asarray(file, np.float32)), 65535.0
            elif file.mode == "F":
                raise ValueError(f"{path}: expected a picture of integers, got floats, whose white is not known")
            else:
                colours = pillow.new("RGBA", file.size, (background,) * 3 + (255,))
                colours.alpha_composite(file.convert("RGBA"))
                picture, white = colours.convert("L" if channels == 1 else "RGB"), 255.0
            if size is not None:
                picture = picture.resize(size, pillow.Resampling.BOX)
    except (pillow.DecompressionBombError, SyntaxError) as error:
        raise ValueError(f"{path}: {error}") from error
    pixels: NDArray[np.float32] = np.asarray(picture, np.float32) / np.float32(white)
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * channels, axis=-1)
    planes: NDArray[np.float32] = pixels.transpose(2, 0, 1)
    return planes


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
    if not np.isfinite(image).all():
        raise ValueError(f"{path}: expected finite numbers, got nan or inf")
    values: NDArray[np.float32] = image.astype(np.float32) / np.float32(255.0 if image.dtype == np.uint8 else 1.0)
    return values


def probabilities(net: nn.Layer, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Those of the classes, from outputs (N, C): logits or their logarithms, unless the network ends in a softmax."""
    if isinstance(_leaves(net)[-1], nn.Softmax):
        return outputs
    shares: NDArray[np.float32] = nn.Softmax()(outputs)
    return shares


def _leaves(net: nn.Layer) -> list[nn.Layer]:
    children = net.children()
    return [leaf for child in children for leaf in _leaves(child)] if children else [net]


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("image files need Pillow: pip install 'deepnet[image]'") from error
    return Image
