"""The Sobel filter on a picture that is made here: brightness, edge magnitude and edge angle.

Two kernels estimate the slope of the brightness along x and along y; magnitude and angle follow from the two:

    Gx = [-1 0 1; -2 0 2; -1 0 1] * picture     magnitude = sqrt(Gx^2 + Gy^2)
    Gy = Gx's kernel transposed   * picture     angle     = arctan2(Gy, Gx)

    python sobel.py [--size N] [--output FILE.png]

Needs matplotlib.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np

import deepnet as dn

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FIGURE = Path(__file__).parent / "figures" / "sobel.png"


def picture(size):
    """A shaded ball on a tiled floor under a sky, of shape (size, size) and values in [0, 1]."""
    y, x = np.mgrid[-1 : 1 : (size + 4) * 1j, -1 : 1 : (size + 4) * 1j]
    sky = 0.9 - 0.3 * (y + 1)
    depth = 1 / np.maximum(y - 0.1, 0.02)  # of the floor's points in perspective; the horizon is at y = 0.1
    tiles = 0.25 + 0.3 * ((np.floor(depth) + np.floor(1.5 * x * depth)) % 2)
    scene = np.where(y < 0.3, sky, tiles)
    u, v = (x + 0.1) / 0.55, (y + 0.05) / 0.55
    height = np.sqrt(np.maximum(1 - u**2 - v**2, 0))
    light = np.maximum(-0.5 * u - 0.6 * v + 0.62 * height, 0)  # the cosine between the surface and the lamp's direction
    scene = np.where(u**2 + v**2 < 1, 0.08 + 0.9 * light, scene)
    # Softens the stairs of slanted edges; "valid" takes the four rows and columns off again.
    return dn.image.convolve(scene, dn.image.gaussian_kernel(5), padding="valid")


def draw(image, path):
    magnitude, angle = dn.image.sobel(image)
    # Direction as hue, strength as opacity: where nothing changes the angle means nothing.
    strength = np.clip(magnitude / np.quantile(magnitude, 0.97), 0, 1)

    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.75), layout="constrained")
    axes[0].imshow(image, cmap="gray", vmin=0, vmax=1)
    axes[1].imshow(strength, cmap="gray")
    axes[2].set_facecolor("black")
    axes[2].imshow(angle, cmap="hsv", vmin=-np.pi, vmax=np.pi, alpha=strength)
    for panel, title in zip(axes, ("picture", "magnitude", "angle"), strict=True):
        panel.set(title=title, xticks=[], yticks=[])
    figure.savefig(path, dpi=72, pil_kwargs={"optimize": True})
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--output", type=Path, default=FIGURE)
    options = parser.parse_args()
    draw(picture(options.size), options.output)
    print(f"drawn to {options.output}")


if __name__ == "__main__":
    main()
