"""The command line: what it prints, what it refuses in one line, and how it ends."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import deepnet as dn
from checks import assert_same_bits
from conftest import require
from deepnet import _images, _terminal, cli, data, nn
from test_data import idx, write_folder


def deepnet(*arguments, timeout=120, **environment):
    return subprocess.run(
        [sys.executable, "-m", "deepnet", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
    )


def refused(capsys, *arguments):
    """The one line that tells why."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("deepnet: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    return err


@pytest.fixture(scope="module")
def digits_model(tmp_path_factory):
    """A network for digits, trained for two epochs by the command."""
    path = tmp_path_factory.mktemp("model") / "digits.safetensors"
    assert cli.main(["train", "digits", "--epochs", "2", "--quiet", "--save", str(path)]) == 0
    return path


# --- train and evaluate ----------------------------------------------------------------------------------------------


def test_train_digits_does_its_main_job():
    result = deepnet("train", "digits", timeout=900, PYTHONIOENCODING="utf-8")
    assert result.returncode == 0, result.stderr
    accuracy = float(re.search(r"^test accuracy: ([01]\.\d{4})$", result.stdout, re.MULTILINE)[1])
    assert accuracy >= 0.985
    assert "trained in" in result.stdout
    assert "next, try:" in result.stdout
    assert len(re.findall(r"^\d  [01]\.\d{4}  \S+ +\d+ of \d+$", result.stdout, re.MULTILINE)) == 10
    assert result.stderr.count("samples/s") == 6
    assert "\033" not in result.stdout


@pytest.mark.timing
def test_train_digits_takes_less_than_a_minute():
    """What README.md promises of it."""
    begin = time.perf_counter()
    assert deepnet("train", "digits", "--quiet").returncode == 0
    assert time.perf_counter() - begin < 60


def test_train_saves_what_evaluate_finds(tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    assert cli.main(["train", "digits", "--model", "mlp", "--epochs", "3", "--quiet", "--save", str(path)]) == 0
    trained = capsys.readouterr()
    assert trained.err == ""
    assert f"saved to {path}" in trained.out
    assert cli.main(["evaluate", str(path), "digits"]) == 0
    report = capsys.readouterr().out
    assert report.strip() in trained.out
    accuracy = dn.load(path).evaluate(*data.digits()[1])["accuracy"]
    assert f"test accuracy: {accuracy:.4f}" in report


def test_same_seed_same_network(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        path = tmp_path / name
        assert cli.main(["train", "digits", "--epochs", "1", "--quiet", "--seed", str(seed), "--save", str(path)]) == 0
    a, b, c = (dn.load(tmp_path / name).state_dict()["0.weight"] for name in "abc")
    assert_same_bits(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize("model", ["digits-cnn", "lenet", "mlp", "vgg-small"])
def test_every_model_trains_on_a_folder(tmp_path, rng, model, capsys):
    shape = {"lenet": (17, 20), "vgg-small": (9, 14)}.get(model, (6, 7))
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(rng.integers(0, 256, (20, *shape))))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(20) % 4))
    options = ["--model", model, "--epochs", "1", "--batch-size", "8", "--lr", "0.01"]
    assert cli.main(["train", str(tmp_path), *options]) == 0
    out, err = capsys.readouterr()
    assert f"{model}: " in out
    assert f"20 images of {shape[0]} x {shape[1]}" in out
    assert err.startswith("epoch 1/1: loss ")


def test_threads_option(capsys):
    before = dn.get_num_threads()
    try:
        assert cli.main(["train", "digits", "--epochs", "1", "--quiet", "--model", "mlp", "--threads", "1"]) == 0
        assert "1 thread\n" in capsys.readouterr().out
    finally:
        dn.set_num_threads(before)


def test_plot(tmp_path, capsys):
    require("matplotlib")
    path = tmp_path / "training.png"
    assert cli.main(["train", "digits", "--epochs", "1", "--quiet", "--plot", str(path)]) == 0
    assert f"drawn to {path}" in capsys.readouterr().out
    contents = path.read_bytes()
    assert contents[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(contents) > 10_000


@pytest.mark.parametrize("option", ["--save", "--plot"])
def test_bad_places_are_refused_before_training(tmp_path, option, capsys, monkeypatch):
    monkeypatch.setattr(nn.Layer, "fit", None)
    assert "there is no folder" in refused(capsys, "train", "digits", option, tmp_path / "none" / "file.png")
    assert "got the folder" in refused(capsys, "train", "digits", option, tmp_path)


def test_plot_without_matplotlib_is_refused_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(nn.Layer, "fit", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    assert "pip install 'deepnet[plot]'" in refused(capsys, "train", "digits", "--plot", tmp_path / "x.png")


def test_plots_of_unknown_types_are_refused_before_training(tmp_path, capsys, monkeypatch):
    require("matplotlib")
    monkeypatch.setattr(nn.Layer, "fit", None)
    assert "expected --plot to end in .png" in refused(capsys, "train", "digits", "--plot", tmp_path / "a.xyz")


def test_plot_without_a_suffix(tmp_path, capsys):
    require("matplotlib")
    options = ["--model", "mlp", "--epochs", "1", "--quiet", "--plot", str(tmp_path / "a")]
    assert cli.main(["train", "digits", *options]) == 0
    assert f"drawn to {tmp_path / 'a'}\n" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train digits --seed -1", "a whole number from 0 to 18446744073709551615, got '-1'"),
        ("train digits --seed 18446744073709551616", "a whole number from 0 to"),
        ("train digits --threads 1e14", "a whole number from 1 to 2147483647, got '1e14'"),
        ("train digits --threads 100000000000000", "a whole number from 1 to 2147483647"),
        ("train digits --epochs 0", "a whole number from 1 to"),
        ("train digits --lr 0", "a number above 0, got '0'"),
        ("sample m --seed -1", "a whole number from 0 to"),
    ],
)
def test_numbers_out_of_range(arguments, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(arguments.split())
    assert message in capsys.readouterr().err


def test_bad_train_arguments(tmp_path, rng, capsys):
    assert "got 'numbers'" in refused(capsys, "train", "numbers")
    assert "got 'resnet'" in refused(capsys, "train", "digits", "--model", "resnet")
    assert "at least 16 x 16 for lenet, got 8 x 8" in refused(capsys, "train", "digits", "--model", "lenet")
    assert "expected train-images" in refused(capsys, "train", tmp_path)
    write_folder(tmp_path, rng)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"junk")
    assert "[read_idx]" in refused(capsys, "train", tmp_path)
    for arguments in (["--epochs", "0"], ["--lr", "nan"], ["--batch-size", "-3"], ["--threads", "two"], ["--colour"]):
        with pytest.raises(SystemExit) as end:
            cli.main(["train", "digits", *arguments])
        assert end.value.code == 2
        assert "error" in capsys.readouterr().err


def test_a_rate_too_high_is_one_line(capsys):
    assert "epoch 1 of 6, batch" in refused(capsys, "train", "digits", "--lr", "1e30", "--quiet")


def test_evaluate_refuses_other_files_and_data(tmp_path, digits_model, rng, capsys):
    assert "none" in refused(capsys, "evaluate", tmp_path / "none", "digits")
    (tmp_path / "junk").write_bytes(b"junk" * 100)
    assert "[load]" in refused(capsys, "evaluate", tmp_path / "junk", "digits")
    write_folder(tmp_path, rng)
    assert "Linear" in refused(capsys, "evaluate", digits_model, tmp_path)
    nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).save(tmp_path / "three")
    assert "each of 10 classes" in refused(capsys, "evaluate", tmp_path / "three", "digits")


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_ends_with_130_and_saves(tmp_path):
    path = tmp_path / "m"
    command = [sys.executable, "-m", "deepnet", "train", "digits", "--epochs", "100000", "--save", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline().startswith("epoch 1/100000")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in out + err
    assert err.endswith("deepnet: interrupted\n")
    assert dn.load(path).evaluate(*data.digits()[1])["accuracy"] > 0.8  # one epoch was done


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise")
def test_a_reader_that_leaves_early_is_no_error():
    code = "import sys; from deepnet.cli import main; sys.exit(main(['train', 'digits', '--epochs', '1', '--quiet']))"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 0
    assert err == b""


# --- predict, info, filter, the rest ---------------------------------------------------------------------------------


def test_predict_arrays(tmp_path, digits_model, capsys):
    x, _ = data.digits()[1]
    np.save(tmp_path / "a.npy", x[0, 0])
    np.save(tmp_path / "b.npy", np.round(x[1] * 255).astype(np.uint8))
    assert cli.main(["predict", str(digits_model), str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]) == 0
    out = capsys.readouterr().out
    best = dn.load(digits_model).predict(x[:2]).argmax(axis=1)
    shown = re.findall(r"npy:\n +(\d)  ([01]\.\d{4})", out)
    assert [int(label) for label, _ in shown] == best.tolist()
    np.save(tmp_path / "wide.npy", np.zeros((8, 9)))
    assert "(1, 8, 8), got (1, 8, 9)" in refused(capsys, "predict", digits_model, tmp_path / "wide.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    refused(capsys, "predict", digits_model, tmp_path / "objects.npy")
    refused(capsys, "predict", digits_model, tmp_path / "none.npy")


def test_predict_pictures(tmp_path, digits_model, capsys):
    image = require("PIL.Image")
    x, _ = data.digits()[1]
    pixels = np.kron(np.round(x[0, 0] * 255).astype(np.uint8), np.ones((4, 4), np.uint8))
    image.fromarray(pixels).save(tmp_path / "light.png")
    image.fromarray(255 - pixels).convert("RGB").save(tmp_path / "dark.png")
    np.save(tmp_path / "array.npy", x[0])
    rows = []
    for name, *options in (["array.npy"], ["light.png"], ["dark.png", "--invert"], ["light.png", "--size", "8x8"]):
        assert cli.main(["predict", str(digits_model), str(tmp_path / name), *options]) == 0
        rows.append([line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]])
    assert rows[1:] == [rows[0]] * 3
    (tmp_path / "text.png").write_text("no picture")
    refused(capsys, "predict", digits_model, tmp_path / "text.png")
    assert "like 28x28" in refused(capsys, "predict", digits_model, tmp_path / "light.png", "--size", "large")


def shares(capsys, *arguments):
    """What predict prints of each class, likeliest first."""
    assert cli.main(["predict", *map(str, arguments)]) == 0
    return [float(share) for share in re.findall(r"^ +\d+  ([01]\.\d{4})", capsys.readouterr().out, re.MULTILINE)]


def test_predict_takes_the_softmax_of_a_network_for_what_it_is(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.array([[0.0, 1.0, 2.0]]))
    expected = np.exp([2.0, 1.0, 0.0]) / np.exp([2.0, 1.0, 0.0]).sum()
    for name, head in (("logits", []), ("shares", [nn.Softmax()]), ("logs", [nn.Sequential(nn.LogSoftmax())])):
        nn.Sequential(nn.Flatten(), *head).save(tmp_path / name)
        assert shares(capsys, tmp_path / name, tmp_path / "a.npy", "--size", "1x3") == pytest.approx(expected, abs=1e-4)


def test_predict_refuses_sizes_that_do_not_fit(tmp_path, digits_model, capsys, monkeypatch):
    np.save(tmp_path / "a.npy", np.zeros((8, 8)))
    nn.Sequential(nn.Conv2d(1, 4, 3), nn.GlobalAvgPool2d()).save(tmp_path / "any")
    monkeypatch.setattr(_images, "read_image", None)
    assert "Linear" in refused(capsys, "predict", digits_model, tmp_path / "a.npy", "--size", "9x99")
    for size in ("99999x99999", "2049x2048", "0x8"):
        assert "4,194,304 pixels" in refused(capsys, "predict", tmp_path / "any", tmp_path / "a.npy", "--size", size)


def test_predict_names_classes(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.eye(1, 10))
    for classes, path in ((10, tmp_path / "ten"), (3, tmp_path / "three")):
        nn.Sequential(nn.Flatten(), nn.Linear(10, classes)).save(path)
    options = [tmp_path / "a.npy", "--size", "1x10", "--data"]
    assert cli.main(["predict", str(tmp_path / "ten"), *map(str, options), "fashion-mnist"]) == 0
    out = capsys.readouterr().out
    assert sum(name in out for name in data.FASHION_CLASSES) == 3
    assert "digits, fashion-mnist, got 'bogus'" in refused(capsys, "predict", tmp_path / "ten", *options, "bogus")
    assert "the 10 classes of digits, got 3" in refused(capsys, "predict", tmp_path / "three", *options, "digits")


def test_predict_refuses_nan(tmp_path, digits_model, capsys):
    np.save(tmp_path / "nan.npy", np.full((8, 8), np.nan))
    assert "finite" in refused(capsys, "predict", digits_model, tmp_path / "nan.npy")


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_16_bits_and_with_alpha(tmp_path, channels):
    image = require("PIL.Image")
    ramp = np.array([[0, 13107], [39321, 65535]], np.uint16)
    image.fromarray(ramp).save(tmp_path / "deep.png")
    expected = np.stack([ramp / np.float32(65535.0)] * channels)[None]
    pixels = _images.read_image(tmp_path / "deep.png", (channels, 2, 2))
    np.testing.assert_allclose(pixels, expected, atol=1e-6)
    np.testing.assert_allclose(_images.read_picture(tmp_path / "deep.png"), expected[0, 0], atol=1e-6)
    # Opaque, half and fully transparent: over black, which is what no ink leaves, and over white.
    rgba = np.array([[[204, 204, 204, 255], [255, 255, 255, 128], [255, 255, 255, 0]]], np.uint8)
    image.fromarray(rgba).save(tmp_path / "alpha.png")
    shape = (channels, 1, 3)
    np.testing.assert_allclose(_images.read_image(tmp_path / "alpha.png", shape)[0, 0, 0], [0.8, 0.5, 0], atol=4e-3)
    inverted = _images.read_image(tmp_path / "alpha.png", shape, invert=True)
    np.testing.assert_allclose(inverted[0, 0, 0], [0.2, 0, 0], atol=4e-3)
    np.testing.assert_allclose(_images.read_picture(tmp_path / "alpha.png"), [[0.8, 1, 1]], atol=4e-3)
    image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="floats"):
        _images.read_image(tmp_path / "float.tiff", (channels, 2, 2))


def test_pictures_without_pillow(digits_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "pip install 'deepnet[image]'" in refused(capsys, "predict", digits_model, tmp_path / "a.png")


@pytest.mark.parametrize("side", [8, 28, 32, 21])
def test_input_shape_follows_from_the_weights(side):
    from deepnet import _models

    for build in (_models.mlp, _models.digits_cnn if side < 16 else _models.lenet):
        shape = _images.input_shape(build((3 if build is _models.lenet else 1, side, side), 10))
        net = build(shape, 10)
        assert net.predict(np.zeros((1, *shape))).shape == (1, 10)


def test_info(digits_model, capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert dn.__version__ in out
    assert dn.active_isa() in out
    assert cli.main(["info", str(digits_model)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("for inputs of shape (N, 1, 8, 8):\n")
    assert re.search(r"Conv2d +\(N, 32, 8, 8\)", out)
    assert "total" in out


@pytest.mark.parametrize(
    ("net", "first"),
    [
        (lambda: nn.Sequential(nn.Linear(5, 3)), "for inputs of shape (N, 5):"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GlobalAvgPool2d()), "layer "),
        (lambda: nn.Sequential(nn.LSTM(5, 4), nn.Linear(4, 5)), "layer "),
    ],
)
def test_info_shows_shapes_where_weights_tell_them(tmp_path, net, first, capsys):
    net().save(tmp_path / "m")
    assert cli.main(["info", str(tmp_path / "m")]) == 0
    out = capsys.readouterr().out
    assert out.startswith(first)
    assert ("?" in out) == (first == "layer ")


def test_filter(tmp_path, rng, capsys):
    image = require("PIL.Image")
    picture = np.zeros((20, 30), np.uint8)
    picture[5:15, 10:20] = 255
    image.fromarray(picture).save(tmp_path / "in.png")
    for kind in ("gaussian", "sobel"):
        assert cli.main(["filter", kind, str(tmp_path / "in.png"), str(tmp_path / "out.png")]) == 0
        result = np.asarray(image.open(tmp_path / "out.png"))
        assert result.shape == picture.shape
        if kind == "sobel":
            assert result[10, 15] == 0
            assert result.max() == 255
            assert result[10, 10] > 100
        else:
            assert 0 < result[10, 8] < result[10, 15] < 255
    capsys.readouterr()
    assert "no folder" in refused(capsys, "filter", "sobel", tmp_path / "in.png", tmp_path / "none" / "out.png")
    refused(capsys, "filter", "sobel", tmp_path / "none.png", tmp_path / "out.png")


def test_version_help_and_entry_point(capsys):
    assert deepnet("--version").stdout == f"deepnet {dn.__version__}\n"
    assert cli.main(["--version"]) == 0
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    for command in ("train", "evaluate", "predict", "info", "filter"):
        assert command in out
    for arguments, status in ((["train", "--help"], 0), (["fly"], 2)):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == status


# --- what is printed -------------------------------------------------------------------------------------------------


def test_confusion_matrix():
    labels, predicted = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 0])
    matrix = _terminal.confusion_matrix(labels, predicted, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    text = _terminal.format_confusion(matrix, ["cat", "horse", "dog"], colour=False)
    assert text.splitlines()[2:] == ["  cat  1 1 .", "horse  . 1 .", "  dog  1 . 2"]
    coloured = _terminal.format_confusion(matrix, ["cat", "horse", "dog"], colour=True)
    assert "\033[32m 2\033[0m" in coloured
    assert "\033[31m 1\033[0m" in coloured
    assert re.sub(r"\033\[\d+m", "", coloured) == text
    accuracy = _terminal.format_class_accuracy(np.array([[1, 1], [0, 0]]), ["a", "b"]).splitlines()
    assert accuracy[0].startswith("a  0.5000  ")
    assert accuracy[0].endswith("1 of 2")
    assert accuracy[1].endswith("0 of 0")


def test_colour_only_where_it_is_wanted(monkeypatch):
    class Terminal:
        def isatty(self):
            return True

    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert _terminal.use_colour(Terminal())
    assert not _terminal.use_colour(open(os.devnull))  # noqa: SIM115
    monkeypatch.setenv("TERM", "dumb")
    assert not _terminal.use_colour(Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not _terminal.use_colour(Terminal())


def test_bars_suit_the_terminal():
    result = deepnet("train", "digits", "--epochs", "1", "--quiet", PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert "###" in result.stdout
