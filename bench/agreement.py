"""Benchmarks time only programs that compute the same; where they do not, the script ends with an error."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

TOLERANCE = 1e-3
# Of what the steps change in the weights. In a deep net some ReLU or maximum falls to the other side by rounding alone:
# in vgg-small the two layouts of PyTorch differ from each other by 0.003.
CHANGE_TOLERANCE = 1e-2
CHECKED_STEPS = 2  # momentum has no effect in the first


class Disagreement(SystemExit):
    """Ends the program with its message and exit status 1 where nobody catches it."""


def require_close(what: str, got: ArrayLike, expected: ArrayLike, tolerance: float) -> None:
    """End the program unless both have one shape and differ by that part of the norm at most."""
    a, b = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if a.shape != b.shape:
        raise Disagreement(f"{what}: expected deepnet of shape {b.shape}, got {a.shape}")
    error, size = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
    if not error <= tolerance * size:
        raise Disagreement(f"{what}: expected deepnet within {tolerance} of norm {size:.3g}, got {error:.3g} off")
