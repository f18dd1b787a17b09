"""Data to learn from.

Images, as ``(x_train, y_train), (x_test, y_test)``: x float32 in [0, 1] of shape (N, 1, H, W), y int64.

>>> import deepnet as dn
>>> (x_train, y_train), (x_test, y_test) = dn.data.digits()

Sequences: the characters of a text, and windows of a series.

>>> import numpy as np
>>> alphabet = dn.data.Alphabet("abn")    # dn.data.text("book.txt") reads a file and finds its alphabet
>>> x, y = dn.data.Text(alphabet.encode("banana"), alphabet).windows(length=3)
>>> x, y = dn.data.series(np.sin(np.arange(100)), window=10)
>>> x.shape, y.shape
((90, 10, 1), (90, 1))
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from deepnet._sequences import Alphabet, Text, TextBatches, series, text

__all__ = [
    "FASHION_CLASSES",
    "Alphabet",
    "Text",
    "TextBatches",
    "digits",
    "fashion_mnist",
    "idx_folder",
    "read_idx",
    "series",
    "text",
]

Split: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64]]

#: What the labels of :func:`fashion_mnist` mean.
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
# The project's own server (github.com/zalandoresearch/fashion-mnist, README), which speaks HTTP only, and the same
# bucket by its other name. Contents are verified, so that the connection need not be trusted.
_URLS = (
    "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
_DIGITS_TRAIN = 1437
_PIECE = 1 << 20
_LONGEST_HEADER = 4 + 4 * 255  # of an IDX file, whose number of axes is a byte


class _File(NamedTuple):
    name: str
    sha256: str  # of the decompressed contents, which every distribution shares
    bytes: int


_FILES = (
    _File("train-images-idx3-ubyte", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888", 47040016),
    _File("train-labels-idx1-ubyte", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9", 60008),
    _File("t10k-images-idx3-ubyte", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b", 7840016),
    _File("t10k-labels-idx1-ubyte", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34", 10008),
)


def digits() -> tuple[Split, Split]:
    """Handwritten digits, 1,437 to train and 360 to test, 8 x 8 pixels; they come with the package.

    The split is fixed and has equal shares of every class. Source: E. Alpaydin and C. Kaynak, "Optical Recognition
    of Handwritten Digits", UCI, 1998, CC BY 4.0, as in scikit-learn's ``load_digits``.

    Returns
    -------
    tuple
        ``(x_train, y_train), (x_test, y_test)``; x of shape (N, 1, 8, 8) in [0, 1], y from 0 to 9.

    Examples
    --------
    >>> import deepnet as dn
    >>> (x_train, y_train), (x_test, y_test) = dn.data.digits()
    >>> x_train.shape, y_test.shape
    ((1437, 1, 8, 8), (360,))
    """
    with np.load(Path(__file__).parent / "_data" / "digits.npz", allow_pickle=False) as file:
        x = file["images"][:, None].astype(np.float32) / np.float32(16.0)
        y = file["labels"].astype(np.int64)
    return (x[:_DIGITS_TRAIN], y[:_DIGITS_TRAIN]), (x[_DIGITS_TRAIN:], y[_DIGITS_TRAIN:])


def fashion_mnist(path: str | os.PathLike[str] | None = None) -> tuple[Split, Split]:
    """Zalando's 70,000 pictures of clothes, 60,000 to train and 10,000 to test, 28 x 28 pixels, 10 classes.

    Source: Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms", MIT licence.

    Parameters
    ----------
    path
        Folder of the four IDX files, compressed by gzip or not. Without it they are looked for in the folder that the
        environment variable DEEPNET_DATA names, in that of Debian's package dataset-fashion-mnist, and in the cache
        (``~/.cache/deepnet/fashion-mnist``); if they are nowhere, they are downloaded into the cache and their
        SHA-256 is checked.

    Returns
    -------
    tuple
        ``(x_train, y_train), (x_test, y_test)``; x of shape (N, 1, 28, 28) in [0, 1]; labels are those of
        :data:`FASHION_CLASSES`.

    Raises
    ------
    FileNotFoundError
        The files are in none of these places and cannot be downloaded.
    ValueError
        A file is not what it should be.

    Examples
    --------
    >>> import deepnet as dn
    >>> (x_train, y_train), (x_test, y_test) = dn.data.fashion_mnist()
    >>> x_train.shape[1:]
    (1, 28, 28)
    >>> dn.data.FASHION_CLASSES[9]
    'Ankle boot'
    """
    if path is not None:
        return idx_folder(path)
    cache = _cache_folder()
    environment = os.environ.get("DEEPNET_DATA")
    places = [cache, _DEBIAN]
    if environment:
        places += [Path(environment), Path(environment) / "fashion-mnist"]
    for folder in reversed(places):
        if all(_find(folder, file.name) for file in _FILES):
            return idx_folder(folder)
    _download(cache, places)
    return idx_folder(cache)


def idx_folder(path: str | os.PathLike[str]) -> tuple[Split, Split]:
    """Any data set in the four files of MNIST: ``{train,t10k}-images-idx3-ubyte`` and ``-labels-idx1-ubyte``.

    Parameters
    ----------
    path
        Folder of the files, whose names may end in ``.gz``.

    Returns
    -------
    tuple
        ``(x_train, y_train), (x_test, y_test)``; x float32 of shape (N, 1, H, W) in [0, 1], y int64 of shape (N,).

    Raises
    ------
    FileNotFoundError
        The folder lacks one of the files.
    ValueError
        A file is not in the IDX format, or images and labels differ in number.

    Examples
    --------
    >>> from pathlib import Path
    >>> import deepnet as dn
    >>> for part in ("train", "t10k"):  # two images of 1 x 2 pixels
    ...     images = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 255, 255, 0])
    ...     labels = bytes([0, 0, 8, 1, 0, 0, 0, 2, 5, 7])
    ...     for name, content in (("images-idx3", images), ("labels-idx1", labels)):
    ...         size = Path(f"{part}-{name}-ubyte").write_bytes(content)
    >>> (x_train, y_train), (x_test, y_test) = dn.data.idx_folder(".")
    >>> x_train
    array([[[[0., 1.]]],
    <BLANKLINE>
    <BLANKLINE>
           [[[1., 0.]]]], dtype=float32)
    >>> y_train
    array([5, 7])
    """
    folder = Path(path)
    splits = []
    for part in ("train", "t10k"):
        images = read_idx(_find_or_raise(folder, f"{part}-images-idx3-ubyte"), ndim=3)
        labels = read_idx(_find_or_raise(folder, f"{part}-labels-idx1-ubyte"), ndim=1)
        if len(images) != len(labels):
            raise ValueError(
                f"[idx_folder] expected as many labels as images in {folder}, got {len(labels)} labels and "
                f"{len(images)} images of {part}"
            )
        splits.append((images[:, None].astype(np.float32) / np.float32(255.0), labels.astype(np.int64)))
    return splits[0], splits[1]


def read_idx(path: str | os.PathLike[str], ndim: int | None = None) -> NDArray[np.uint8]:
    """An array of bytes from a file in the IDX format of MNIST, compressed by gzip or not.

    The format: two zero bytes, 8 (unsigned bytes), the number of axes, each axis's size as a big-endian 32-bit
    number, then the elements, last axis fastest (yann.lecun.com/exdb/mnist).

    Parameters
    ----------
    path
        The file.
    ndim
        Number of axes that it should have.

    Raises
    ------
    ValueError
        The file is damaged, in another format, holds other than unsigned bytes, or is longer or shorter than its
        header says.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> from pathlib import Path
    >>> import deepnet as dn
    >>> size = Path("small.idx").write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]))
    >>> dn.data.read_idx("small.idx")
    array([[1, 2, 3],
           [4, 5, 6]], dtype=uint8)
    """
    data = _read(Path(path))
    where = f"[read_idx] {os.fspath(path)}"
    if len(data) < 4 or data[:2] != b"\0\0":
        raise ValueError(f"{where}: expected an IDX file, which begins with two zero bytes, got {data[:4]!r}")
    if data[2] != 8:
        raise ValueError(f"{where}: expected elements of type 8 (unsigned byte), got type {data[2]}")
    axes = data[3]
    if ndim is not None and axes != ndim:
        raise ValueError(f"{where}: expected {ndim} axes, got {axes}")
    begin = 4 + 4 * axes
    if axes == 0 or len(data) < begin:
        raise ValueError(f"{where}: expected the sizes of {axes} axes, got {len(data)} bytes in all")
    shape = tuple(int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes))
    size = math.prod(shape)
    if len(data) - begin != size:
        raise ValueError(f"{where}: expected {size} elements for shape {shape}, got {len(data) - begin}")
    return np.frombuffer(data, np.uint8, offset=begin).reshape(shape)


def _read(path: Path) -> bytes:
    """The contents, decompressed if they are compressed, whatever the name says.

    The header is read first, and no more decompressed than the array that it announces, and a byte: a file of a
    megabyte may hold a gigabyte of zeros.
    """
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        header = _decompress(data, _LONGEST_HEADER)
        return _decompress(data, _idx_size(header) + 1)
    except ValueError as error:
        raise ValueError(f"[read_idx] {path}: {error}") from error


def _idx_size(header: bytes) -> int:
    """Bytes of an IDX file that begins so; of any other file those of the header, which tell what it is."""
    axes = header[3] if len(header) > 3 else 0
    sizes = [int.from_bytes(header[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
    return 4 + 4 * axes + math.prod(sizes) if header[:3] == b"\0\0\x08" and axes else len(header)


def _decompress(data: bytes, limit: int) -> bytes:
    """Up to `limit` bytes of what gzip `data`, in one part or several, hold; ValueError where they are damaged."""
    import gzip
    import io
    import zlib

    parts = []
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            # In pieces, for read makes room for all that it is asked for.
            while limit > 0 and (part := file.read(min(limit, _PIECE))):
                parts.append(part)
                limit -= len(part)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"expected gzip data, got damaged ones ({error})") from error
    return b"".join(parts)


def _find(folder: Path, name: str) -> Path | None:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    return None


def _find_or_raise(folder: Path, name: str) -> Path:
    found = _find(folder, name)
    if found is None:
        raise FileNotFoundError(f"[idx_folder] expected {name} or {name}.gz in {folder}, found neither")
    return found


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "deepnet" / "fashion-mnist"


def _download(folder: Path, searched: list[Path]) -> None:
    """Fetches what the folder lacks."""
    tried = []
    for file in _FILES:
        if _find(folder, file.name):
            continue
        for base in _URLS:
            url = f"{base}{file.name}.gz"
            try:
                _fetch(url, folder, file)
                break
            except (OSError, ValueError) as error:
                tried.append(f"{url}: {error}")
        else:
            raise FileNotFoundError(
                "[fashion_mnist] found no Fashion-MNIST in "
                + ", ".join(map(str, searched))
                + " and could not download it. Install it (Debian, Ubuntu: apt install dataset-fashion-mnist), or give "
                "the folder of its four files as path= or in DEEPNET_DATA. Tried " + "; ".join(tried)
            )


def _fetch(url: str, folder: Path, file: _File) -> None:
    """Downloads one file, checks it, and only then gives it its name."""
    import hashlib
    import tempfile
    import urllib.request

    with urllib.request.urlopen(url, timeout=30) as answer:
        compressed = answer.read(file.bytes + 1)  # the compressed file is smaller than its contents
    contents = _decompress(compressed, file.bytes + 1)
    checksum = hashlib.sha256(contents).hexdigest()
    if checksum != file.sha256:
        raise ValueError(f"expected contents with SHA-256 {file.sha256}, got {checksum}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=file.name, delete=False) as temporary:
        temporary.write(compressed)
    os.replace(temporary.name, folder / f"{file.name}.gz")
