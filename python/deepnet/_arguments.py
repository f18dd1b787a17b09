"""Checks of arguments that several functions take."""

from __future__ import annotations

import numpy as np


def at_least_one(where: str, **values: int) -> None:
    """Raises TypeError or ValueError unless all are integers above zero."""
    for name, value in values.items():
        _at_least(1, where, name, value)


def checked_seed(where: str, seed: int) -> int:
    """The seed, as NumPy takes it."""
    _at_least(0, where, "seed", seed)
    return int(seed)


def _at_least(least: int, where: str, name: str, value: object) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"[{where}] expected {name} to be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"[{where}] expected {name} >= {least}, got {value}")
