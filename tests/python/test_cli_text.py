"""The command line on texts: a character model learns, is tested, writes, and refuses what it cannot use."""

import math
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

import deepnet as dn
from deepnet import _text_job, cli, data, nn
from test_cli import deepnet, refused

LINE = "the quick brown fox jumps over the lazy dog.\n"


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(LINE * 30, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(book):
    """What the command learns from thirty equal lines."""
    path = book.parent / "model.safetensors"
    assert cli.main(["train", str(book), "--epochs", "40", "--quiet", "--save", str(path)]) == 0
    return path


def sample(capsys, model, *arguments):
    assert cli.main(["sample", str(model), *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


# --- train and evaluate ----------------------------------------------------------------------------------------------


def test_train_reports(book, tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    assert cli.main(["train", str(book), "--model", "charlstm", "--epochs", "2", "--save", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("charlstm: ")
    assert f"{30 * len(LINE):,} characters, {len(set(LINE))} of them different, 2 epochs" in out
    assert re.search(r"^bits per character: \d\.\d{3} on 135 held-out characters$", out, re.MULTILINE)
    assert re.search(r"^for comparison: 4\.\d{3} by how frequent each character is$", out, re.MULTILINE)
    assert "it writes:" in out
    assert f"saved to {path}" in out
    (suggested,) = re.findall(r"^  deepnet (sample .* --prompt .*)$", out, re.MULTILINE)
    assert cli.main(shlex.split(suggested)) == 0, "a prompt of the text's own characters"
    capsys.readouterr()
    assert err.startswith("epoch 1/2: loss ")
    assert dn.load(path).metadata == {"alphabet": "".join(sorted(set(LINE)))}


def test_it_learns_what_it_reads_and_evaluate_agrees(model, book, tmp_path, capsys):
    assert cli.main(["evaluate", str(model), str(book)]) == 0
    bits = float(re.search(r"^bits per character: (\d\.\d{3}) on 1,350 characters$", capsys.readouterr().out, re.M)[1])
    assert bits < 0.3
    x, labels = data.text(book).windows(len(LINE) * 30 - 1)
    loss = dn.load(model).evaluate(x, labels, loss=nn.CrossEntropyLoss(axis=-1))["loss"]
    assert bits == pytest.approx(loss / math.log(2), abs=6e-4)


@pytest.mark.parametrize("name", ["charlstm", "chargru"])
def test_bits_are_those_of_one_character_after_another(book, name):
    """Streaming, step by step, comes to the same as reading in pieces of a thousand characters."""
    line = data.text(book)
    text = data.Text(np.tile(line.codes, 2)[:1500], line.alphabet)
    net = _text_job.build(name, text.alphabet)
    net.reset_state()
    total = 0.0
    for code, following in zip(text.codes[:-1], text.codes[1:], strict=True):
        y = net.step(text.alphabet.one_hot([code]))[0].astype(np.float64)
        total += np.log(np.exp(y).sum()) - y[following]
    assert _text_job.bits_per_character(net, text) == pytest.approx(total / 1499 / math.log(2), rel=1e-5)


def test_a_text_as_the_model_says_it(tmp_path, capsys):
    """As short as a text can be, of one character and in letters beyond ASCII."""
    for text in ("abab" * 5, "a" * 30, "本の虫" * 10):
        (tmp_path / "t").write_text(text, encoding="utf-8")
        assert cli.main(["train", str(tmp_path / "t"), "--epochs", "1", "--quiet"]) == 0
        assert "bits per character" in capsys.readouterr().out


def test_same_seed_same_model(book, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        arguments = ["--epochs", "1", "--quiet", "--seed", str(seed), "--save", str(tmp_path / name)]
        assert cli.main(["train", str(book), *arguments]) == 0
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_bad_texts_and_options(tmp_path, book, capsys, monkeypatch):
    monkeypatch.setattr(nn.Layer, "fit", None)
    bad = tmp_path / "bad.txt"
    for contents, message in (
        (b"", "two characters or more, got 0"),
        (b"ab\xff", "UTF-8"),
        (b"ab", "15 characters or more, of which"),
    ):
        bad.write_bytes(contents)
        assert message in refused(capsys, "train", bad)
    assert "or a text file, got" in refused(capsys, "train", tmp_path / "none.txt")
    assert "charlstm, chargru for a text, got 'lenet'" in refused(capsys, "train", book, "--model", "lenet")
    assert "got 'charlstm'" in refused(capsys, "train", "digits", "--model", "charlstm")
    assert "there is no folder" in refused(capsys, "train", book, "--save", tmp_path / "none" / "m")
    assert "--batch-size below the 1,215 characters" in refused(capsys, "train", book, "--batch-size", "1215")
    assert "expected no --plot" in refused(capsys, "train", book, "--plot", tmp_path / "m.png")


def test_evaluate_refuses(model, tmp_path, book, capsys):
    other = tmp_path / "other.txt"
    other.write_text("THE FOX", encoding="utf-8")
    assert "got also 'E', 'F', 'H', 'O', 'T' and 1 more" in refused(capsys, "evaluate", model, other)
    nn.Sequential(nn.Linear(2, 2)).save(tmp_path / "m")
    assert "without an alphabet" in refused(capsys, "evaluate", tmp_path / "m", book)
    net = nn.Sequential(nn.LSTM(29, 3), nn.Linear(3, 5))
    net.metadata = {"alphabet": data.text(book).alphabet.characters}
    net.save(tmp_path / "m")
    assert "got (1, 1024, 5)" in refused(capsys, "evaluate", tmp_path / "m", book)


# --- sample ----------------------------------------------------------------------------------------------------------


def test_sample_goes_on_from_the_prompt(model, capsys):
    out = sample(capsys, model, "--prompt", "the quick", "--length", 36, "--top-k", 1)
    assert out == LINE + "\n"
    assert sample(capsys, model, "--prompt", "the quick brown", "--length", 4, "--temperature", 1e-9).endswith(" fox\n")
    assert len(sample(capsys, model)) == 501
    assert len(sample(capsys, model, "--length", 7, "--prompt", "fox")) == 11


def test_sample_follows_its_seed(model, capsys):
    hot = ("--temperature", 20, "--length", 100)
    a, b, c = (sample(capsys, model, *hot, "--seed", seed) for seed in (1, 1, 2))
    assert a == b != c
    assert sample(capsys, model, *hot) != sample(capsys, model, *hot)


def test_sample_refuses(model, tmp_path, capsys):
    assert "got also 'T'" in refused(capsys, "sample", model, "--prompt", "The ")
    nn.Sequential(nn.Linear(2, 2)).save(tmp_path / "m")
    assert "without an alphabet" in refused(capsys, "sample", tmp_path / "m")
    assert "none" in refused(capsys, "sample", tmp_path / "none")
    for layers, message in (
        ([nn.LSTM(3, 4), nn.Linear(4, 2)], "3 outputs, got (2,)"),
        ([nn.LSTM(3, 4, bidirectional=True), nn.Linear(8, 3)], "LSTM"),
        ([nn.LSTM(2, 3)], "LSTM"),
    ):
        net = nn.Sequential(*layers)
        net.metadata = {"alphabet": "abc"}
        net.save(tmp_path / "m")
        assert message in refused(capsys, "sample", tmp_path / "m")
    net = nn.Sequential(nn.GRU(3, 2), nn.Linear(2, 3))
    net.metadata = {"alphabet": "abc"}
    net.parameters()["1.bias"].data[1] = np.nan
    net.save(tmp_path / "m")
    assert "expected finite scores" in refused(capsys, "sample", tmp_path / "m")
    net = nn.Linear(3, 3)
    net.metadata = {"alphabet": "abc"}
    net.save(tmp_path / "m")
    assert "expected a recurrent network, got a Linear" in refused(capsys, "sample", tmp_path / "m")
    net.metadata = {"alphabet": "aa"}
    net.save(tmp_path / "m")
    assert "[Alphabet]" in refused(capsys, "sample", tmp_path / "m")


@pytest.mark.parametrize(
    "option", ["--temperature=0", "--temperature=-1", "--temperature=nan", "--top-k=0", "--length=0", "--seed=x"]
)
def test_bad_sample_options(model, option, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["sample", str(model), option])
    assert end.value.code == 2
    assert "error" in capsys.readouterr().err


def test_draw_follows_the_probabilities(rng):
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    for options, shares in (
        ({}, [0.1, 0.2, 0.3, 0.4]),
        ({"temperature": 0.5}, np.array([1, 4, 9, 16]) / 30),
        ({"top_k": 2}, [0, 0, 3 / 7, 4 / 7]),
        ({"top_k": 9}, [0.1, 0.2, 0.3, 0.4]),
        ({"temperature": 1e-300}, [0, 0, 0, 1]),
    ):
        counts = np.bincount([_text_job.draw(logits, rng, **options) for _ in range(4000)], minlength=4)
        deviations = np.sqrt(4000 * np.asarray(shares) * (1 - np.asarray(shares)))
        assert np.all(np.abs(counts - 4000 * np.asarray(shares)) <= 4 * deviations)


def test_a_terminal_without_the_letters_gets_question_marks(tmp_path):
    net = nn.Sequential(nn.GRU(2, 3), nn.Linear(3, 2))
    net.metadata = {"alphabet": "é本"}
    net.save(tmp_path / "m")
    result = deepnet("sample", tmp_path / "m", "--length", "5", PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stdout) == (0, "?????\n")


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise")
def test_text_comes_as_it_is_written(model):
    """A reader sees the first characters before the last are there, and may leave."""
    command = [sys.executable, "-m", "deepnet", "sample", str(model), "--prompt", "the", "--length", "100000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(3) == b"the"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
