"""Data sets: the digits of the package, Fashion-MNIST wherever it is, IDX files and nothing else."""

import gzip
import hashlib
import http.server
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from checks import attempt_python
from conftest import require
from deepnet import data

NAMES = [f"{part}-{content}-ubyte" for part in ("train", "t10k") for content in ("images-idx3", "labels-idx1")]


def idx(array, kind=8):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, kind, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_folder(folder, rng, compress=False):
    """A small data set in four files; returns the images and labels written."""
    written = []
    for part, n in (("train", 12), ("t10k", 5)):
        images, labels = rng.integers(0, 256, (n, 6, 4)), rng.integers(0, 3, n)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            contents = idx(array)
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(contents))
            else:
                (folder / name).write_bytes(contents)
        written.append((images, labels))
    return written


def check_splits(splits, shape, train, test):
    for (x, y), n in zip(splits, (train, test), strict=True):
        assert x.shape == (n, *shape)
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        assert y.shape == (n,)
        assert y.dtype == np.int64
        assert x.min() == 0
        assert x.max() == 1
        assert set(y) == set(range(10))


def test_digits():
    splits = data.digits()
    check_splits(splits, (1, 8, 8), 1437, 360)
    for digit in range(10):
        assert 0.19 < np.mean(splits[1][1] == digit) / np.mean(splits[0][1] == digit) * 0.2 < 0.21


def test_digits_are_scikit_learns():
    theirs = require("sklearn.datasets").load_digits()
    (x, y), (x_test, y_test) = data.digits()
    ours = np.concatenate([np.concatenate([x, x_test]).reshape(-1, 64) * 16, np.append(y, y_test)[:, None]], axis=1)
    wanted = np.concatenate([theirs.data, theirs.target[:, None]], axis=1)
    assert np.array_equal(ours[np.lexsort(ours.T)], wanted[np.lexsort(wanted.T)])


def test_digits_come_with_source_and_licence():
    text = (Path(data.__file__).parent / "_data" / "README.md").read_text()
    assert "CC" in text or "Creative Commons Attribution 4.0" in text
    assert "doi.org/10.24432/C50P49" in text


def test_fashion_mnist_of_debian():
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    splits = data.fashion_mnist()
    check_splits(splits, (1, 28, 28), 60000, 10000)
    assert np.array_equal(np.bincount(splits[1][1]), [1000] * 10)
    assert len(data.FASHION_CLASSES) == 10


@pytest.mark.parametrize("compress", [False, True])
def test_folders(tmp_path, rng, compress, monkeypatch):
    written = write_folder(tmp_path, rng, compress)
    monkeypatch.setenv("DEEPNET_DATA", str(tmp_path))
    for splits in (data.idx_folder(tmp_path), data.fashion_mnist(str(tmp_path)), data.fashion_mnist()):
        for (x, y), (images, labels) in zip(splits, written, strict=True):
            assert np.array_equal(np.round(x[:, 0] * 255), images)
            assert np.array_equal(y, labels)
            assert (x.dtype, y.dtype) == (np.float32, np.int64)


def test_folder_that_lacks_a_file(tmp_path, rng):
    write_folder(tmp_path, rng)
    (tmp_path / NAMES[3]).unlink()
    with pytest.raises(FileNotFoundError, match=r"expected t10k-labels-idx1-ubyte or .*\.gz in"):
        data.idx_folder(tmp_path)


def test_images_without_labels(tmp_path, rng):
    write_folder(tmp_path, rng)
    (tmp_path / NAMES[1]).write_bytes(idx(np.zeros(11)))
    with pytest.raises(ValueError, match="got 11 labels and 12 images of train"):
        data.idx_folder(tmp_path)


GOOD = idx(np.arange(24).reshape(2, 3, 4))
DAMAGED = {
    "empty": (b"", "two zero bytes"),
    "too short": (GOOD[:3], "two zero bytes"),
    "other format": (b"\x89PNG" + GOOD, "two zero bytes"),
    "floats": (idx(np.zeros((2, 3, 4)), kind=13), "type 8 .* got type 13"),
    "labels": (idx(np.zeros(5)), "expected 3 axes, got 1"),
    "no axes": (bytes([0, 0, 8, 0]), "expected 3 axes, got 0"),
    "header cut": (GOOD[:10], "sizes of 3 axes"),
    "data cut": (GOOD[:-1], r"24 elements for shape \(2, 3, 4\), got 23"),
    "trailing bytes": (GOOD + b"x", "got 25"),
    "overflow": (bytes([0, 0, 8, 3]) + b"\xff" * 12, "elements for shape"),
    "gzip cut": (gzip.compress(GOOD)[:-9], "damaged"),
    "gzip header only": (gzip.compress(GOOD)[:9], "damaged"),
    "gzip with flipped bits": (gzip.compress(GOOD)[:-8] + bytes(8), "damaged"),
    "gzip of too little": (gzip.compress(bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(9)), "got 9"),
    "gzip of too much": (gzip.compress(GOOD + bytes(9)), "got 25"),
    "gzip of junk": (b"\x1f\x8b\x08\x00" + b"junk" * 9, "damaged"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused(tmp_path, name):
    contents, message = DAMAGED[name]
    path = tmp_path / "file"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=message) as error:
        data.read_idx(path, ndim=3)
    assert str(path) in str(error.value)


def test_read_idx(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(GOOD))
    assert np.array_equal(data.read_idx(path), np.arange(24).reshape(2, 3, 4))
    path.write_bytes(idx(np.zeros((0, 5))))
    assert data.read_idx(path).shape == (0, 5)
    with pytest.raises(FileNotFoundError):
        data.read_idx(tmp_path / "none")


BOMB = 1 << 26


@pytest.mark.parametrize("begin", [GOOD, b"\x89PNG", bytes([0, 0, 8, 255])])
def test_no_more_is_decompressed_than_announced(tmp_path, begin):
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(begin + bytes(BOMB)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"\[read_idx\]"):
            data.read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < BOMB // 8
    finally:
        tracemalloc.stop()


# --- downloads, from a server of our own -----------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """Serves the folder `remote`."""
    folder = tmp_path / "remote"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


@pytest.fixture
def elsewhere(monkeypatch, tmp_path, server, rng):
    """fashion_mnist with our server, our files and our cache; nothing is installed."""
    folder, url = server
    written = write_folder(folder, rng, compress=True)
    files = []
    for name in NAMES:
        contents = gzip.decompress((folder / f"{name}.gz").read_bytes())
        files.append(data._File(name, hashlib.sha256(contents).hexdigest(), len(contents) + 100))
    monkeypatch.setattr(data, "_FILES", tuple(files))
    monkeypatch.setattr(data, "_URLS", ("http://127.0.0.1:9/", url))
    monkeypatch.setattr(data, "_DEBIAN", tmp_path / "not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DEEPNET_DATA", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return folder, tmp_path / "cache" / "deepnet" / "fashion-mnist", written


def test_download_once(elsewhere):
    remote, cache, written = elsewhere
    splits = data.fashion_mnist()
    assert np.array_equal(splits[0][1], written[0][1])
    assert sorted(path.name for path in cache.iterdir()) == sorted(f"{name}.gz" for name in NAMES)
    for path in remote.iterdir():
        path.unlink()
    assert np.array_equal(data.fashion_mnist()[0][1], written[0][1])


BAD_DOWNLOADS = {"junk": b"junk", "other contents": gzip.compress(b"other"), "cut": gzip.compress(GOOD)[:-4]}


@pytest.mark.parametrize("name", BAD_DOWNLOADS)
def test_download_that_is_not_what_it_should_be(elsewhere, name):
    remote, cache, _ = elsewhere
    (remote / f"{NAMES[0]}.gz").write_bytes(BAD_DOWNLOADS[name])
    with pytest.raises(FileNotFoundError, match=r"SHA-256|gzip"):
        data.fashion_mnist()
    assert not cache.exists() or not list(cache.iterdir())


def test_a_download_is_decompressed_no_further_than_its_size(elsewhere, monkeypatch):
    remote, _, _ = elsewhere
    monkeypatch.setattr(data, "_FILES", tuple(file._replace(bytes=100_000) for file in data._FILES))
    (remote / f"{NAMES[0]}.gz").write_bytes(gzip.compress(bytes(BOMB)))
    tracemalloc.start()
    try:
        with pytest.raises(FileNotFoundError, match="SHA-256"):
            data.fashion_mnist()
        assert tracemalloc.get_traced_memory()[1] < BOMB // 8
    finally:
        tracemalloc.stop()


def test_no_network_says_what_to_do(elsewhere):
    remote, cache, _ = elsewhere
    for path in remote.iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        data.fashion_mnist()
    for words in ("apt install dataset-fashion-mnist", "DEEPNET_DATA", "path=", str(cache), "127.0.0.1:9", "404"):
        assert words in str(error.value)


def test_published_checksums():
    """The contents' SHA-256 are those of the files whose MD5 the project publishes, as Debian installs them."""
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    for file in data._FILES:
        contents = gzip.decompress((folder / f"{file.name}.gz").read_bytes())
        assert hashlib.sha256(contents).hexdigest() == file.sha256
        assert len(contents) == file.bytes


def test_data_needs_no_network_module():
    result = attempt_python("import sys, deepnet; deepnet.data.digits(); print('urllib.request' in sys.modules)")
    assert result.stdout.strip() == "False"
