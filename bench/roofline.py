"""Draws how fast work goes against how often it uses a byte (Williams, Waterman and Patterson 2009, "Roofline")."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from peak import Peak


class Point(NamedTuple):
    """A row of the table: floating-point operations a byte, and GFLOP/s."""

    name: str
    intensity: float
    gflops: float


def draw_roofline(path: Path, points: Sequence[Point], peak: Peak, title: str) -> None:
    """A PNG with the machine's roof, slanted where memory is what limits, and the points of each kind under it."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), dpi=100)
    lowest = min([point.intensity for point in points], default=1.0) / 2
    highest = max([point.intensity for point in points], default=1.0) * 2
    x = np.geomspace(min(lowest, 0.5), max(highest, 100), 200)
    axes.loglog(x, np.minimum(peak.gflops, peak.gbs * x), color="black", linewidth=1)
    ridge = peak.gflops / peak.gbs
    axes.text(ridge, peak.gflops * 1.06, f"{peak.gflops:.0f} GFLOP/s", ha="center", fontsize=8)
    axes.text(ridge / 4, peak.gflops / 4 * 1.1, f"{peak.gbs:.1f} GB/s ", ha="right", fontsize=8)
    for kind, marker in (("product", "s"), ("forward", "^"), ("backward", "v"), ("network", "o")):
        chosen = [point for point in points if _kind(point.name) == kind]
        if chosen:
            axes.plot([p.intensity for p in chosen], [p.gflops for p in chosen], marker, label=kind, markersize=5)
    axes.set_xlabel("floating-point operations a byte")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(title, fontsize=10)
    axes.grid(which="major", linewidth=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def _kind(name: str) -> str:
    last = name.rsplit(", ", 1)[-1]
    return name if name == "product" else last if last in ("forward", "backward") else "network"
