"""Sequences to learn from: characters and windows, where they begin and end, and what is refused."""

import numpy as np
import pytest

import deepnet as dn
from deepnet import data

SENTENCE = "a quick brown fox jumps over the lazy dog. "


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(SENTENCE * 20, encoding="utf-8")
    return path


# --- alphabet and text -----------------------------------------------------------------------------------------------


def test_alphabet_goes_both_ways():
    alphabet = data.Alphabet("bca")
    assert len(alphabet) == 3
    codes = alphabet.encode("abcab")
    assert codes.dtype == np.int64
    assert codes.tolist() == [2, 0, 1, 2, 0]
    assert alphabet.decode(codes) == "abcab"
    assert alphabet.encode("").shape == (0,)
    assert alphabet.decode([]) == ""
    assert alphabet == data.Alphabet("bca") != data.Alphabet("abc")
    assert hash(alphabet) == hash(data.Alphabet("bca"))
    assert repr(alphabet) == "Alphabet('bca')"


def test_one_hot():
    x = data.Alphabet("abc").one_hot([[2, 0], [1, 1]])
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    assert x.tolist() == [[[0, 0, 1], [1, 0, 0]], [[0, 1, 0], [0, 1, 0]]]
    assert data.Alphabet("abc").one_hot(np.array(1, np.uint8)).tolist() == [0, 1, 0]


def test_bad_alphabets_and_codes():
    with pytest.raises(ValueError, match=r"\[Alphabet\] expected at least one character and each once, got 'aba'"):
        data.Alphabet("aba")
    with pytest.raises(ValueError, match="got ''"):
        data.Alphabet("")
    with pytest.raises(TypeError, match="got a list"):
        data.Alphabet(["a", "b"])
    alphabet = data.Alphabet("abc")
    with pytest.raises(ValueError, match=r"expected the 3 characters of the alphabet, got also 'x', 'ü'$"):
        alphabet.encode("axbüx")
    with pytest.raises(ValueError, match=r"'d', 'e', 'f', 'g', 'h' and 2 more$"):
        alphabet.encode("abcdefghij"[::-1])
    for codes in ([0, 3], [-1]):
        with pytest.raises(ValueError, match="expected codes from 0 to 2"):
            alphabet.decode(codes)
        with pytest.raises(ValueError, match="expected codes from 0 to 2"):
            alphabet.one_hot(codes)
    with pytest.raises(TypeError, match="integers, got dtype float64"):
        alphabet.one_hot([0.5])
    with pytest.raises(ValueError, match=r"\(T,\), got \(1, 2\)"):
        alphabet.decode([[0, 1]])


@pytest.mark.parametrize("as_path", [str, lambda path: path])
def test_text_of_a_file(book, as_path):
    text = data.text(as_path(book))
    assert str(text) == SENTENCE * 20
    assert text.alphabet.characters == "".join(sorted(set(SENTENCE)))
    assert text.codes.dtype == np.int64
    assert len(text) == len(SENTENCE) * 20
    assert repr(text) == f"<Text: {len(text):,} characters, {len(set(SENTENCE))} of them different>"


def test_text_beyond_ascii(tmp_path):
    path = tmp_path / "t"
    path.write_bytes(b"\xef\xbb\xbf" + "Ein Büchlein: 本\r\n𝄞\n".encode())
    text = data.text(path)
    assert str(text) == "Ein Büchlein: 本\n𝄞\n"
    assert text.alphabet.characters[-1] == "𝄞"


def test_text_in_another_texts_alphabet(tmp_path, book):
    alphabet = data.text(book).alphabet
    other = tmp_path / "other"
    other.write_text("the fox", encoding="utf-8")
    text = data.text(other, alphabet)
    assert text.alphabet is alphabet
    assert str(text) == "the fox"
    other.write_text("the F0X", encoding="utf-8")
    with pytest.raises(ValueError, match=r"other: \[Alphabet\] expected the .* got also '0', 'F', 'X'"):
        data.text(other, alphabet)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda path: data.text(path, "abc"), r"\[text\] expected alphabet to be an Alphabet, got a str"),
        (lambda path: data.Text([0, 1], "ab"), r"\[Text\] expected alphabet to be an Alphabet, got a str"),
        (
            lambda path: data.Alphabet("ab").encode(None),
            r"\[Alphabet.encode\] expected a text as a str, got a NoneType",
        ),
        (lambda path: data.Alphabet("ab").encode(b"ab"), r"\[Alphabet.encode\] expected a text as a str, got a bytes"),
    ],
)
def test_texts_and_alphabets_of_another_type(attempt, message, book):
    with pytest.raises(TypeError, match=message):
        attempt(book)


BAD_FILES = {
    "empty": (b"", "two characters or more, got 0"),
    "one character": ("ü".encode(), "two characters or more, got 1"),
    "latin-1": (b"caf\xe9 noir", "expected text in UTF-8, got byte 0xe9 at position 3"),
    "cut": ("ab本".encode()[:-1], "expected text in UTF-8, got byte 0xe6 at position 2"),
    "binary": (b"\x89PNG\r\n", "0x89 at position 0"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_no_text(tmp_path, name):
    contents, message = BAD_FILES[name]
    path = tmp_path / "file"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=message) as error:
        data.text(path)
    assert str(path) in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        data.text(tmp_path / "none")
    with pytest.raises(OSError, match="file"):
        data.text(tmp_path)


def test_split(book):
    text = data.text(book)
    train, test = text.split(0.25)
    assert str(train) + str(test) == str(text)
    assert len(test) == round(len(text) / 4)
    assert train.alphabet is test.alphabet is text.alphabet
    for share in (0.0, 1.0, -0.5, np.nan):
        with pytest.raises(ValueError, match=r"\[Text.split\] expected held_out between 0 and 1"):
            text.split(share)
    with pytest.raises(TypeError, match=r"\[Text.split\] expected held_out to be a number, got 'a'"):
        text.split("a")
    with pytest.raises(ValueError, match="two characters or more on either side, got 9 and 1"):
        data.Text([0] * 10, data.Alphabet("a")).split()


def test_windows(book):
    text = data.text(book)
    x, y = text.windows(length=7)
    assert x.shape == (len(y), 7, len(text.alphabet))
    assert len(y) == (len(text) - 1) // 7
    codes = x.argmax(axis=2)
    assert np.array_equal(codes.ravel(), text.codes[: codes.size])
    assert np.array_equal(y.ravel(), text.codes[1 : codes.size + 1])
    x, y = text.windows(length=7, stride=3)
    assert np.array_equal(x[5].argmax(axis=1), text.codes[15:22])
    assert np.array_equal(y[-1], text.codes[3 * len(y) - 2 : 3 * len(y) + 5])
    assert len(text) - (3 * len(y) + 5) < 3
    x, y = data.Text([0, 1, 0, 1], data.Alphabet("ab")).windows(3)
    assert y.tolist() == [[1, 0, 1]]


def test_batches_go_on_where_the_last_one_stopped(book):
    text = data.text(book)
    batches = text.batches(batch_size=3, length=50)
    walk = list(batches)
    assert len(batches) == len(walk) == -(-((len(text) - 1) // 3) // 50)
    x, y = (np.concatenate(part, axis=1) for part in zip(*walk, strict=True))
    columns = (len(text) - 1) // 3
    assert x.shape == (3, columns, len(text.alphabet))
    assert y.dtype == np.int64
    for row in range(3):
        begin = row * columns
        assert np.array_equal(x[row].argmax(axis=1), text.codes[begin : begin + columns])
        assert np.array_equal(y[row], text.codes[begin + 1 : begin + columns + 1])
    again = list(batches)
    assert all(np.array_equal(a, b) for a, b in zip(walk[0] + walk[-1], again[0] + again[-1], strict=True))


def test_bad_windows_and_batches():
    text = data.Text([0, 1, 0, 1], data.Alphabet("ab"))
    with pytest.raises(ValueError, match=r"\[Text.windows\] expected a text of 5 characters or more, got 4"):
        text.windows(4)
    with pytest.raises(ValueError, match=r"\[Text.batches\] expected a text of 5 characters or more, got 4"):
        text.batches(4, 1)
    for arguments in ((0, 2), (2, 0), (-1, 2)):
        with pytest.raises(ValueError, match=">= 1, got"):
            text.batches(*arguments)
    with pytest.raises(ValueError, match="expected stride >= 1"):
        text.windows(2, 0)
    for length in (2.0, "2", True):
        with pytest.raises(TypeError, match="expected length to be an integer"):
            text.batches(1, length)


# --- series ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int16, np.float64, ">f4", bool])
def test_series_of_numbers(dtype):
    values = (np.arange(9) % 2 if dtype is bool else np.arange(9)).astype(dtype)
    x, y = data.series(values, window=4, horizon=2)
    assert (x.dtype, y.dtype) == (np.float32, np.float32)
    assert x.flags.c_contiguous
    assert y.flags.c_contiguous
    assert (x.shape, y.shape) == ((4, 4, 1), (4, 2))
    for n in range(4):
        assert np.array_equal(x[n, :, 0], values[n : n + 4])
        assert np.array_equal(y[n], values[n + 4 : n + 6])


def test_series_of_features(rng):
    values = rng.normal(size=(12, 3)).astype(np.float32)
    x, y = data.series(values[:, ::-1], window=5, horizon=2)
    assert (x.shape, y.shape) == ((6, 5, 3), (6, 6))
    for n in range(6):
        assert np.array_equal(x[n], values[n : n + 5, ::-1])
        assert np.array_equal(y[n].reshape(2, 3), values[n + 5 : n + 7, ::-1])
    x, y = data.series(values, window=11)
    assert (x.shape, y.shape) == ((1, 11, 3), (1, 3))


def test_series_is_a_copy():
    values = np.zeros(5, np.float32)
    x, y = data.series(values, 2)
    x[:] = y[:] = 1
    assert not values.any()


def test_bad_series():
    with pytest.raises(
        dn.ShapeError, match=r"\[series\] expected at least window \+ horizon = 6 steps, got shape \(5,\)"
    ):
        data.series(np.zeros(5), 4, 2)
    for shape in ((), (2, 3, 4), (5, 0)):
        with pytest.raises(dn.ShapeError, match=r"expected an array of shape \(T,\) or \(T, F\)"):
            data.series(np.zeros(shape), 1)
    for array in (np.zeros(5, complex), np.zeros(5, object), ["1", "2", "3"]):
        with pytest.raises(TypeError, match="real numbers, got dtype"):
            data.series(array, 1)
    for bad in (np.nan, np.inf, -np.inf, 1e39):
        values = np.zeros((6, 2))
        values[4, 1] = bad
        with pytest.raises(ValueError, match=r"finite numbers, got \[0.0, .*\] at step 4"):
            data.series(values, 2)
    for arguments in ((0,), (2, 0), (-3,)):
        with pytest.raises(ValueError, match=">= 1, got"):
            data.series(np.zeros(5), *arguments)
    for window in (2.0, None, True):
        with pytest.raises(TypeError, match="expected window to be an integer"):
            data.series(np.zeros(5), window)
