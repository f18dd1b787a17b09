"""Where training and evaluation get their rows from: arrays, or batches that the caller made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepnet._core import BCEWithLogitsLoss, Loss, MSELoss, ShapeError, Trainer, sequence_mask

EVALUATION_BATCH = 256  # rows at a time where only outputs are wanted
_REAL_TARGETS = (MSELoss, BCEWithLogitsLoss)


class Step(NamedTuple):
    """What one batch of training came to."""

    loss: float
    rows: int


class Batch(NamedTuple):
    """Inputs and targets, and the mask (N, T) of sequences of different lengths."""

    x: NDArray[Any]
    y: NDArray[Any]
    mask: NDArray[np.float32] | None


class ArraySource:
    """Batches of rows of arrays, in a new order each epoch where there is a random generator."""

    def __init__(
        self,
        where: str,
        x: Any,
        y: ArrayLike,
        loss: Loss,
        batch_size: int,
        random: np.random.Generator | None = None,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> None:
        self._x, self._y = _pair(where, "", x, y, loss)
        if not len(self._x):
            raise ValueError(f"[{where}] expected at least one row of data, got x of shape {self._x.shape}")
        self._mask = sequence_mask(where, self._x.shape, lengths, mask)
        self.samples: int | None = len(self._x)
        self._batch_size = batch_size
        self._random = random
        self._order = np.arange(len(self._x), dtype=np.int64)
        counts = _counting_rows(self._y, loss)
        # A batch whose labels the loss ignores, all of them, is left out; where all batches are so, the loss says it.
        self._counts = None if counts is None or not counts.any() else counts

    def steps(self, trainer: Trainer) -> Iterator[Step]:
        """Train on every batch of one epoch."""
        if self._random is not None:
            self._order = self._random.permutation(len(self._x))
        step, x, y, mask, order, rows = trainer._step_rows, self._x, self._y, self._mask, self._order, len(self._x)
        for begin in range(0, rows, self._batch_size):
            end = min(begin + self._batch_size, rows)
            if self._counts is not None and not self._counts[order[begin:end]].any():
                continue
            yield Step(step(x, y, order, begin, end, mask), end - begin)

    def batches(self) -> Iterator[Batch]:
        """All rows in order, as views."""
        for begin in range(0, len(self._x), self._batch_size):
            rows = slice(begin, begin + self._batch_size)
            if self._counts is not None and not self._counts[rows].any():
                continue
            yield Batch(self._x[rows], self._y[rows], None if self._mask is None else self._mask[rows])


class BatchSource:
    """Batches that the caller made, walked once an epoch; the first walk may have begun already."""

    def __init__(
        self, where: str, batches: Any, loss: Loss, epochs: int = 1, first_walk: Iterator[Any] | None = None
    ) -> None:
        if isinstance(batches, np.ndarray) or not isinstance(batches, Iterable):
            raise TypeError(
                f"[{where}] expected arrays x and y, or an iterable of batches (x, y), got only {_describe(batches)}"
            )
        if epochs > 1 and isinstance(batches, Iterator):
            raise ValueError(
                f"[{where}] expected batches that can be walked {epochs} times, such as a list or an object whose "
                f"__iter__ starts anew, got a {type(batches).__name__}, which is used up after one epoch"
            )
        self.samples: int | None = None
        self._where = where
        self._source = batches
        self._first_walk = first_walk
        self._loss = loss

    def steps(self, trainer: Trainer) -> Iterator[Step]:
        """Train on every batch of one epoch."""
        for x, y, mask in self.batches():
            yield Step(trainer.step(x, y, mask=mask), len(y))

    def batches(self) -> Iterator[Batch]:
        """The batches, checked; without those whose labels the loss ignores, all of them."""
        ignored, counted = 0, False
        walk: Iterable[Any] = self._source if self._first_walk is None else self._first_walk
        self._first_walk = None
        for number, batch in enumerate(walk, start=1):
            if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
                raise TypeError(f"[{self._where}] expected batch {number} to be a pair (x, y), got {_describe(batch)}")
            x, y = _pair(self._where, f" of batch {number}", batch[0], batch[1], self._loss)
            counts = _counting_rows(y, self._loss)
            if counts is not None and counts.size and not counts.any():
                ignored += 1
                continue
            counted = True
            yield Batch(x, y, sequence_mask(self._where, x.shape, *lengths_and_mask(batch[2:])))
        if ignored and not counted:
            raise ValueError(
                f"[{self._where}] expected at least one label other than ignore_index "
                f"{getattr(self._loss, 'ignore_index', '')}, got none in {ignored} batches"
            )


Source: TypeAlias = ArraySource | BatchSource


def first_targets(batches: Any) -> tuple[Any, Iterator[Any] | None]:
    """The targets of the first batch, None where there are none, and the walk that it came from, from there on."""
    if not isinstance(batches, Iterable) or isinstance(batches, np.ndarray):
        return None, None
    walk = iter(batches)
    try:
        first: Any = next(walk)
    except StopIteration:
        return None, walk
    is_batch = isinstance(first, (tuple, list)) and len(first) in (2, 3)
    return (first[1] if is_batch else None), chain([first], walk)


def _counting_rows(y: NDArray[Any], loss: Loss) -> NDArray[np.bool_] | None:
    """Which rows have a label that the loss does not ignore; None where all have."""
    ignore_index = getattr(loss, "ignore_index", None)
    if ignore_index is None or y.dtype != np.int64:
        return None
    ignored = y == ignore_index
    if not ignored.any():
        return None
    counts: NDArray[np.bool_] = ~ignored.reshape(len(y), -1).all(axis=1)
    return counts


@contextmanager
def labels_explained(where: str, y: Any, default_loss: bool) -> Iterator[None]:
    """Where targets of a common wrong kind do not fit the loss, say what to do about them."""
    try:
        yield
    except ShapeError as error:
        targets = np.asarray(y)
        wholes = targets.ndim == 1 and bool((targets == np.floor(targets)).all())
        if default_loss and wholes and str(error).startswith("[MSELoss]"):
            raise TypeError(
                f"[{where}] expected class labels of an integer type, or numbers of the shape of the outputs, got "
                f"{targets.dtype} of shape {targets.shape}"
            ) from error
        labels = targets.dtype.kind in "iu" and targets.ndim > 1
        if labels and str(error).startswith(("[CrossEntropyLoss]", "[NLLLoss]")):
            if targets.shape[1] == 1:
                raise ShapeError(f"{error}; pass y[:, 0]") from error
            if ((targets == 0) | (targets == 1)).all() and (targets.sum(axis=1) == 1).all():
                raise ShapeError(f"{error}; of one-hot labels pass y.argmax(axis=1), or floats") from error
        raise


def validation_source(data: Any, loss: Loss, epochs: int) -> Source:
    """Arrays ``(x, y)``, ``(x, y, lengths)`` or ``(x, y, mask)``, in a tuple or a list; else batches."""
    where = "fit: validation_data"
    if isinstance(data, (tuple, list)) and len(data) in (2, 3) and not all(map(_is_batch, data)):
        x, y, *beside = data
        lengths, mask = lengths_and_mask(beside)
        return ArraySource(where, x, y, loss, EVALUATION_BATCH, lengths=lengths, mask=mask)
    return BatchSource(where, data, loss, epochs)


def _is_batch(value: Any) -> bool:
    """Whether this is (x, y) rather than an array: a list of numbers or of lists is an array."""
    if not isinstance(value, (tuple, list)) or len(value) not in (2, 3) or any(map(np.isscalar, value[:2])):
        return False
    return isinstance(value, tuple) or not all(isinstance(part, list) for part in value)


def lengths_and_mask(beside: Sequence[ArrayLike]) -> tuple[ArrayLike | None, ArrayLike | None]:
    """What stands behind x and y in a tuple: nothing, a mask, which has two axes, or lengths."""
    if not beside:
        return None, None
    return (None, beside[0]) if np.ndim(beside[0]) == 2 else (beside[0], None)


def _pair(where: str, which: str, x: Any, y: Any, loss: Loss) -> tuple[NDArray[Any], NDArray[Any]]:
    """Inputs as float32; targets as int64 labels or float32 numbers, whichever their type and the loss ask for.

    Conversion happens here, once, and not at every step.
    """
    inputs, targets = as_array(where, f"x{which}", x), as_array(where, f"y{which}", y)
    for name, array in (("x", inputs), ("y", targets)):
        if array.dtype.kind not in "biuf":
            raise TypeError(f"[{where}] expected {name}{which} to be an array of real numbers, got dtype {array.dtype}")
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
        raise ShapeError(
            f"[{where}] expected x and y{which} with the same number of rows, "
            f"got shapes {inputs.shape} and {targets.shape}"
        )
    labels = targets.dtype.kind in "iu" and not isinstance(loss, _REAL_TARGETS)
    return (
        np.ascontiguousarray(inputs, dtype=np.float32),
        np.ascontiguousarray(targets, dtype=np.int64 if labels else np.float32),
    )


def as_array(where: str, name: str, values: Any) -> NDArray[Any]:
    """What NumPy makes of them."""
    try:
        return np.asarray(values)
    except ValueError as error:  # NumPy's name for this changes
        raise ShapeError(f"[{where}] expected {name} to have rows of equal shapes, got {error}") from error


def _describe(value: Any) -> str:
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
