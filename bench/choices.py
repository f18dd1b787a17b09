"""How well the cost model chooses convolution algorithms, against what `deepnet.autotune` measures.

$ python bench/choices.py
$ python bench/choices.py --threads 1 --worst 40
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from timing import cpu_name

import deepnet
from deepnet import nn

IMAGES = (1, 16, 32, 64)
CHANNELS = (
    (1, 16, 28),
    (3, 32, 32),
    (3, 64, 64),
    (8, 16, 32),
    (16, 16, 32),
    (16, 32, 16),
    (32, 32, 16),
    (32, 64, 32),
    (64, 64, 16),
    (64, 64, 32),
    (64, 128, 28),
    (128, 128, 14),
    (128, 256, 14),
    (256, 256, 8),
    (64, 64, 56),
    (64, 128, 56),
)  # in, out, pixels a side
KERNELS = ((3, 1), (3, 2), (5, 1), (7, 2), (1, 1), (1, 2))  # size, stride
MOST_FLOATS = 7_000_000
PRODUCTS = ("forward", "backward_data", "backward_weight")


class Shape(NamedTuple):
    """Of a convolution of square images with a square kernel, padded by half of it."""

    images: int
    channels: int
    filters: int
    side: int
    kernel: int
    stride: int


def shapes() -> Iterator[Shape]:
    """Those timed: small and middle-sized networks have them."""
    for n, (c, k, side), (kernel, stride) in itertools.product(IMAGES, CHANNELS, KERNELS):
        if n * c * side * side <= MOST_FLOATS and not (kernel >= 5 and c >= 64):
            yield Shape(n, c, k, side, kernel, stride)


def main() -> None:
    """Print, for each product, how much longer the model's choice takes than the fastest, and where most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--worst", type=int, default=10, help="choices to print for each product (default: 10)")
    options = parser.parse_args()
    deepnet.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "choices.json"
        deepnet.autotune(cache=path)
        for shape in shapes():
            _plan(shape)
        entries = json.loads(path.read_text())["choices"][deepnet.active_isa()]
    print(f"{cpu_name()}, threads: {options.threads}, deepnet {deepnet.__version__} ({deepnet.active_isa()})")
    for product in PRODUCTS:
        _report(product, [entry for entry in entries if entry["product"] == product], options.worst)


def _plan(shape: Shape) -> None:
    """Lets a layer meet the shape, forward and backward."""
    layer = nn.Conv2d(shape.channels, shape.filters, shape.kernel, stride=shape.stride, padding=shape.kernel // 2)
    y = layer(np.ones((shape.images, shape.channels, shape.side, shape.side), np.float32))
    layer.backward(y)


def _report(product: str, entries: list[dict[str, object]], worst: int) -> None:
    losses = [_loss(entry) for entry in entries]
    mean = float(np.exp(np.log(losses).mean())) - 1
    print(f"\n{product}: {len(entries)} shapes, {mean:.1%} longer on (geometric) average")
    for loss, entry in sorted(zip(losses, entries, strict=True), key=lambda pair: -pair[0])[:worst]:
        times: dict[str, float] = entry["microseconds"]  # type: ignore[assignment]
        listed = ", ".join(f"{name} {time:.0f} us" for name, time in sorted(times.items(), key=lambda pair: pair[1]))
        n, c, h, w, k, r = entry["shape"][:6]  # type: ignore[index]
        stride = entry["shape"][9]  # type: ignore[index]
        print(f"  {loss:.2f}  {r}x{r}/{stride}, {c} to {k}, {n}x{h}x{w}: {entry['model']} chosen; {listed}")


def _loss(entry: dict[str, object]) -> float:
    """The time of the model's choice over that of the fastest."""
    times: dict[str, float] = entry["microseconds"]  # type: ignore[assignment]
    return times[str(entry["model"])] / min(times.values())


if __name__ == "__main__":
    main()
