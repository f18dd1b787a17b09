"""Sequences to learn from: the characters of a text, and windows of a series."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepnet._arguments import at_least_one
from deepnet._core import ShapeError

_SHOWN = 5  # characters that an error message lists


class Alphabet:
    """Characters as numbers: a character's code is its place in the alphabet.

    Parameters
    ----------
    characters
        The characters in order, each once.

    Raises
    ------
    ValueError
        No character, or one twice.
    TypeError
        No str.

    Examples
    --------
    >>> import deepnet as dn
    >>> alphabet = dn.data.Alphabet("abc")
    >>> alphabet.encode("cab")
    array([2, 0, 1])
    >>> alphabet.decode([2, 0, 1])
    'cab'
    >>> len(alphabet)
    3
    """

    def __init__(self, characters: str) -> None:
        if not isinstance(characters, str):
            raise TypeError(f"[Alphabet] expected characters as a str, got a {type(characters).__name__}")
        self.characters = characters
        self._codes = {character: code for code, character in enumerate(characters)}
        if not characters or len(self._codes) != len(characters):
            raise ValueError(f"[Alphabet] expected at least one character and each once, got {characters!r}")

    def __len__(self) -> int:
        return len(self.characters)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alphabet) and self.characters == other.characters

    def __hash__(self) -> int:
        return hash(self.characters)

    def __repr__(self) -> str:
        return f"Alphabet({self.characters!r})"

    def encode(self, text: str) -> NDArray[np.int64]:
        """The codes of a text's characters, int64 of shape (T,); a ValueError names those that the alphabet lacks.

        Anything but a str is a TypeError.
        """
        if not isinstance(text, str):
            raise TypeError(f"[Alphabet.encode] expected a text as a str, got a {type(text).__name__}")
        try:
            return np.fromiter(map(self._codes.__getitem__, text), np.int64, len(text))
        except KeyError:
            unknown = sorted(set(text) - self._codes.keys())
            shown = ", ".join(map(repr, unknown[:_SHOWN]))
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            raise ValueError(
                f"[Alphabet] expected the {len(self)} characters of the alphabet, got also {shown}{more}"
            ) from None

    def decode(self, codes: ArrayLike) -> str:
        """The text of codes of shape (T,), integers from 0 to V - 1."""
        return "".join(map(self.characters.__getitem__, self._checked("decode", codes, 1).tolist()))

    def one_hot(self, codes: ArrayLike) -> NDArray[np.float32]:
        """Codes of any shape (...) -> float32 (..., V): 1 at each code's place, else 0.

        Parameters
        ----------
        codes
            Integers.

        Raises
        ------
        TypeError
            Codes that are no integers.
        ValueError
            Codes outside [0, V).

        Examples
        --------
        >>> import deepnet as dn
        >>> dn.data.Alphabet("abc").one_hot([2, 0])
        array([[0., 0., 1.],
               [1., 0., 0.]], dtype=float32)
        """
        checked = self._checked("one_hot", codes)
        result = np.zeros((checked.size, len(self)), np.float32)
        result[np.arange(checked.size), checked.ravel()] = 1.0
        return result.reshape(*checked.shape, len(self))

    def _checked(self, where: str, codes: ArrayLike, ndim: int | None = None) -> NDArray[Any]:
        array = np.asarray(codes)
        if array.dtype.kind not in "iu" and array.size:
            raise TypeError(f"[Alphabet.{where}] expected codes as integers, got dtype {array.dtype}")
        if ndim is not None and array.ndim != ndim:
            raise ValueError(f"[Alphabet.{where}] expected codes of shape (T,), got {array.shape}")
        if array.size and not 0 <= array.min() <= array.max() < len(self):
            raise ValueError(
                f"[Alphabet.{where}] expected codes from 0 to {len(self) - 1}, got {array.min()} to {array.max()}"
            )
        return array.astype(np.int64)


class Text:
    """A text as codes of its characters, to learn to tell each character from those before it.

    :func:`text` makes it of a file. ``len(text)`` is the number of characters, T; ``str(text)`` are they.

    Parameters
    ----------
    codes
        Integers of shape (T,); as an attribute int64.
    alphabet
        What the codes mean: :class:`Alphabet`; an attribute, too.

    Raises
    ------
    TypeError
        Codes that are no integers, or no Alphabet.
    ValueError
        Codes that are not of shape (T,), or that the alphabet lacks.

    Examples
    --------
    >>> import deepnet as dn
    >>> alphabet = dn.data.Alphabet("abn")
    >>> text = dn.data.Text(alphabet.encode("banana"), alphabet)
    >>> text
    <Text: 6 characters, 3 of them different>
    >>> str(text), text.codes
    ('banana', array([1, 0, 2, 0, 2, 0]))
    """

    def __init__(self, codes: ArrayLike, alphabet: Alphabet) -> None:
        self.alphabet = _checked_alphabet("Text", alphabet)
        self.codes = alphabet._checked("codes", codes, 1)

    def __len__(self) -> int:
        return len(self.codes)

    def __str__(self) -> str:
        return self.alphabet.decode(self.codes)

    def __repr__(self) -> str:
        return f"<Text: {len(self):,} characters, {len(self.alphabet)} of them different>"

    def split(self, held_out: float = 0.1) -> tuple[Text, Text]:
        """The text but its end, and its end, to test on what was not trained on.

        Parameters
        ----------
        held_out
            The end's share of the characters, between 0 and 1.

        Returns
        -------
        tuple
            Two texts in the same alphabet.

        Raises
        ------
        TypeError
            `held_out` is no number.
        ValueError
            It is not between 0 and 1, or leaves fewer than two characters on a side.

        Examples
        --------
        >>> import deepnet as dn
        >>> text = dn.data.Text([0, 1, 0, 1, 0, 1, 0, 1], dn.data.Alphabet("ab"))
        >>> train, test = text.split(held_out=0.25)
        >>> len(train), len(test)
        (6, 2)
        """
        if not isinstance(held_out, (int, float, np.number)):
            raise TypeError(f"[Text.split] expected held_out to be a number, got {held_out!r}")
        if not 0.0 < held_out < 1.0:
            raise ValueError(f"[Text.split] expected held_out between 0 and 1, got {held_out}")
        end = len(self) - round(held_out * len(self))
        if min(end, len(self) - end) < 2:
            raise ValueError(
                f"[Text.split] expected two characters or more on either side, got {end} and {len(self) - end}"
            )
        return Text(self.codes[:end], self.alphabet), Text(self.codes[end:], self.alphabet)

    def windows(self, length: int, stride: int | None = None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Stretches of the text, each to be read from an empty state: for ``fit(x, y)``, which may shuffle them.

        Parameters
        ----------
        length
            Characters to a window.
        stride
            From the start of one window to that of the next; by default `length`, so that they do not overlap.

        Returns
        -------
        tuple
            x float32 (N, length, V), one-hot, and y int64 (N, length): the character after each of x. All in memory:
            N * length * V * 4 bytes; :meth:`batches` makes them one at a time.

        Raises
        ------
        ValueError
            `length` or `stride` below 1, or a text of fewer than `length` + 1 characters.
        TypeError
            `length` or `stride` that are no integers.

        Examples
        --------
        >>> import deepnet as dn
        >>> alphabet = dn.data.Alphabet("abn")
        >>> x, y = dn.data.Text(alphabet.encode("banana"), alphabet).windows(length=3, stride=1)
        >>> x.shape, [alphabet.decode(row) for row in y]
        ((3, 3, 3), ['ana', 'nan', 'ana'])
        """
        stride = length if stride is None else stride
        at_least_one("Text.windows", length=length, stride=stride)
        _long_enough("Text.windows", self, length + 1)
        starts = np.arange(0, len(self) - length, stride)[:, None] + np.arange(length)
        return self.alphabet.one_hot(self.codes[starts]), self.codes[starts + 1]

    def batches(self, batch_size: int, length: int) -> TextBatches:
        """Batches for truncated backpropagation through time: each goes on where the one before it stopped.

        The text is cut into `batch_size` parts of equal length, one a row, and all rows are read side by side,
        `length` characters at a time. With ``stateful=True`` a recurrent layer carries its state from batch to batch;
        ``reset_state()`` belongs before each walk, where ``fit`` and ``evaluate`` put it themselves.

        Parameters
        ----------
        batch_size, length
            N and T of a batch: x float32 (N, T, V), one-hot; y int64 (N, T), the character after each of x. The last
            batch of a walk may be shorter. Up to N characters at the end of the text, which do not fill a column, are
            left out.

        Returns
        -------
        TextBatches
            Can be walked many times, as ``fit(batches, epochs=...)`` does.

        Raises
        ------
        ValueError
            `batch_size` or `length` below 1, or a text of fewer than `batch_size` + 1 characters.
        TypeError
            `batch_size` or `length` that are no integers.

        References
        ----------
        Williams and Peng 1990, "An efficient gradient-based algorithm for on-line training of recurrent network
        trajectories".

        Examples
        --------
        >>> import deepnet as dn
        >>> text = dn.data.Text([0, 1, 0, 1, 0, 1, 0, 1], dn.data.Alphabet("ab"))
        >>> [y.tolist() for x, y in text.batches(batch_size=1, length=4)]
        [[[1, 0, 1, 0]], [[1, 0, 1]]]
        """
        return TextBatches(self, batch_size, length)


class TextBatches:
    """What :meth:`Text.batches` returns: an iterable of ``(x, y)``; ``len()`` is the number of batches in a walk.

    Parameters
    ----------
    text, batch_size, length
        As of :meth:`Text.batches`.

    Examples
    --------
    >>> import deepnet as dn
    >>> text = dn.data.Text([0, 1, 0, 1, 0, 1, 0, 1], dn.data.Alphabet("ab"))
    >>> batches = text.batches(batch_size=2, length=2)
    >>> len(batches), [(x.shape, y.shape) for x, y in batches]
    (2, [((2, 2, 2), (2, 2)), ((2, 1, 2), (2, 1))])
    """

    def __init__(self, text: Text, batch_size: int, length: int) -> None:
        at_least_one("Text.batches", batch_size=batch_size, length=length)
        _long_enough("Text.batches", text, batch_size + 1)
        columns = (len(text) - 1) // batch_size
        self._alphabet, self._length = text.alphabet, length
        self._inputs = text.codes[: batch_size * columns].reshape(batch_size, columns)
        self._labels = text.codes[1 : batch_size * columns + 1].reshape(batch_size, columns)

    def __len__(self) -> int:
        return -(-self._labels.shape[1] // self._length)

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        for begin in range(0, self._labels.shape[1], self._length):
            columns = slice(begin, begin + self._length)
            yield self._alphabet.one_hot(self._inputs[:, columns]), self._labels[:, columns]


def text(path: str | os.PathLike[str], alphabet: Alphabet | None = None) -> Text:
    """The characters of a text file in UTF-8.

    Parameters
    ----------
    path
        The file. Line ends become ``"\\n"``; a byte order mark is dropped.
    alphabet
        The alphabet to read it in, such as that of the text that a network learned. By default the characters that
        the text has, in the order of their code points.

    Returns
    -------
    Text
        The text as codes.

    Raises
    ------
    TypeError
        `alphabet` is no Alphabet.
    ValueError
        The file is not in UTF-8, has fewer than two characters, or some that `alphabet` lacks.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> from pathlib import Path
    >>> import deepnet as dn
    >>> from deepnet import nn, optim
    >>> n = Path("song.txt").write_text(100 * "la la li\\n", encoding="utf-8")
    >>> text = dn.data.text("song.txt")
    >>> text.alphabet
    Alphabet('\\n ail')
    >>> train, test = text.split(held_out=0.1)
    >>> net = nn.Sequential(nn.LSTM(5, 16, stateful=True), nn.Linear(16, 5))
    >>> trainer = dn.Trainer(net, nn.CrossEntropyLoss(axis=-1), optim.SGD(lr=1.0))
    >>> losses = [trainer.step(x, y) for x, y in train.batches(batch_size=4, length=8)]
    >>> losses[-1] < losses[0]
    True
    """
    if alphabet is not None:
        _checked_alphabet("text", alphabet)
    try:
        characters = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"[text] {os.fspath(path)}: expected text in UTF-8, got byte 0x{error.object[error.start]:02x} at position "
            f"{error.start}"
        ) from None
    if len(characters) < 2:
        raise ValueError(f"[text] {os.fspath(path)}: expected two characters or more, got {len(characters)}")
    try:
        alphabet = Alphabet("".join(sorted(set(characters)))) if alphabet is None else alphabet
        return Text(alphabet.encode(characters), alphabet)
    except ValueError as error:
        raise ValueError(f"[text] {os.fspath(path)}: {error}") from None


def series(array: ArrayLike, window: int, horizon: int = 1) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Windows that slide over a series, and what comes after each: to learn to foretell the one from the other.

    x[n] = array[n : n + window]        y[n] = array[n + window : n + window + horizon]

    Parameters
    ----------
    array
        Real numbers of shape (T,), or (T, F) with F features at each time.
    window
        Steps to look back.
    horizon
        Steps to look ahead.

    Returns
    -------
    tuple
        x float32 (N, window, F) and y float32 (N, horizon * F) with N = T - window - horizon + 1. A row of y is the
        next `horizon` steps, one after the other: ``y.reshape(-1, horizon, F)`` has them apart. A network that ends in
        ``nn.Linear(..., horizon * F)`` fits.

    Raises
    ------
    ShapeError
        The array is not of shape (T,) or (T, F), or shorter than window + horizon.
    TypeError
        The array's elements are no real numbers, or `window` or `horizon` no integers.
    ValueError
        A number is NaN or infinite, in float32 at the latest; `window` or `horizon` below 1.

    Examples
    --------
    >>> import numpy as np
    >>> import deepnet as dn
    >>> x, y = dn.data.series(np.arange(6), window=3)
    >>> x[..., 0]
    array([[0., 1., 2.],
           [1., 2., 3.],
           [2., 3., 4.]], dtype=float32)
    >>> y
    array([[3.],
           [4.],
           [5.]], dtype=float32)
    """
    at_least_one("series", window=window, horizon=horizon)
    values = np.asarray(array)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"[series] expected an array of real numbers, got dtype {values.dtype}")
    if values.ndim not in (1, 2) or 0 in values.shape[1:]:
        raise ShapeError(f"[series] expected an array of shape (T,) or (T, F), got {values.shape}")
    if len(values) < window + horizon:
        raise ShapeError(
            f"[series] expected at least window + horizon = {window + horizon} steps, got shape {values.shape}"
        )
    values = values.reshape(len(values), -1)
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        step = int(np.argmin(np.isfinite(values).all(axis=1)))
        raise ValueError(f"[series] expected finite numbers, got {values[step].tolist()} at step {step}")
    starts = np.arange(len(values) - window - horizon + 1)[:, None]
    x = values[starts + np.arange(window)]
    y = values[starts + window + np.arange(horizon)]
    return x, y.reshape(len(y), -1)


def _checked_alphabet(where: str, alphabet: Alphabet) -> Alphabet:
    if not isinstance(alphabet, Alphabet):
        raise TypeError(f"[{where}] expected alphabet to be an Alphabet, got a {type(alphabet).__name__}")
    return alphabet


def _long_enough(where: str, text: Text, least: int) -> None:
    if len(text) < least:
        raise ValueError(f"[{where}] expected a text of {least} characters or more, got {len(text)}")
