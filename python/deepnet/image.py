"""The convolution of a kernel over an array, and what is built from it.

>>> import numpy as np
>>> import deepnet as dn
>>> picture = np.eye(16)
>>> smooth = dn.image.convolve(picture, dn.image.gaussian_kernel(7))
>>> magnitude, angle = dn.image.sobel(picture)
>>> median = dn.image.neighborhood(picture, lambda cells: np.median(cells, axis=-1), 3)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepnet._arguments import at_least_one
from deepnet._core import ShapeError, col2im, convolve, gaussian_kernel, im2col, sobel

__all__ = ["col2im", "convolve", "gaussian_kernel", "im2col", "neighborhood", "sobel"]


def neighborhood(array: ArrayLike, fn: Callable[[NDArray[Any]], ArrayLike], size: int = 3) -> NDArray[Any]:
    """Any function of the cells around each cell, linear or not: a median, a maximum, a local contrast.

    Parameters
    ----------
    array
        Shape (..., H, W), of which H and W are at least 1. Outside, the cells of the edge repeat.
    fn
        Gets the neighborhoods of all cells at once, as a read-only array of shape (..., H, W, size * size), row by row
        of each neighborhood, and returns one value for each: an array of shape (..., H, W).
    size
        Height and width of the neighborhoods; odd, so that they have a centre.

    Returns
    -------
    ndarray
        Shape (..., H, W); the type is that which `fn` returns.

    Raises
    ------
    ShapeError
        The array has fewer than two axes or no cells in its last two, or `fn` returns another shape.
    TypeError
        The array is of complex numbers or objects, `size` is no integer.
    ValueError
        `size` is even or below 1.

    Examples
    --------
    >>> import numpy as np
    >>> import deepnet as dn
    >>> dn.image.neighborhood(np.eye(3), lambda cells: cells.max(axis=-1) - cells.min(axis=-1), 3)
    array([[1., 1., 1.],
           [1., 1., 1.],
           [1., 1., 1.]])
    >>> dn.image.neighborhood([[1, 2, 9, 4, 5]], lambda cells: np.median(cells, axis=-1), 3)
    array([[1., 2., 4., 5., 5.]])
    """
    values = np.asarray(array)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"[neighborhood] expected an array of real numbers, got dtype {values.dtype}")
    if values.ndim < 2:
        raise ShapeError(f"[neighborhood] expected an array of shape (..., H, W), got {values.shape}")
    at_least_one("neighborhood", size=size)
    if not callable(fn):
        raise TypeError(f"[neighborhood] expected fn to be a function of an array, got {fn!r}")
    if size % 2 == 0:
        raise ValueError(f"[neighborhood] expected an odd size >= 1, got {size}")
    if 0 in values.shape[-2:]:
        raise ShapeError(f"[neighborhood] expected H and W of at least 1, got shape {values.shape}")
    around = [(0, 0)] * (values.ndim - 2) + [(size // 2, size // 2)] * 2
    padded = np.pad(values, around, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(-2, -1))
    cells = windows.reshape(*values.shape, size * size)
    cells.flags.writeable = False
    result = np.asarray(fn(cells))
    if result.shape != values.shape:
        raise ShapeError(
            f"[neighborhood] expected fn to return an array of shape {values.shape}, one value for each of the "
            f"neighborhoods {cells.shape}, got {result.shape}"
        )
    return result
