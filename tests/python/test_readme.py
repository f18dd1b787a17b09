"""README.md is true: its Python runs and prints what it says, its commands parse, its C++ builds, its figures exist."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import deepnet as dn
import test_packaging
from conftest import require
from deepnet import cli
from test_data import idx
from test_packaging import run

build = test_packaging.build  # the fixture
REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"


class Block(NamedTuple):
    language: str
    code: str
    line: int  # of its first line of code, from 1


def read_blocks():
    text = README.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(match[1], match[2], text[: match.start(2)].count("\n") + 1) for match in found]


BLOCKS = read_blocks()


def blocks_of(language):
    return [block for block in BLOCKS if block.language == language]


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """All Python blocks, run in order as one program in an empty folder: that folder, and {line: what it printed}."""
    folder = tmp_path_factory.mktemp("readme")
    output = {}

    def recording_print(*values):
        output[sys._getframe(1).f_lineno] = " ".join(map(str, values))

    namespace = {"__name__": "readme", "print": recording_print}
    threads, before = dn.get_num_threads(), Path.cwd()
    os.chdir(folder)
    try:
        for block in blocks_of("python"):
            lines_before = "\n" * (block.line - 1)  # so that errors tell README's line
            exec(compile(lines_before + block.code, README, "exec"), namespace)
    finally:
        os.chdir(before)
        dn.set_num_threads(threads)
    return folder, output


def test_python_blocks_print_what_they_say(printed):
    """`print(...)  # text` prints the text; dots in it stand for anything."""
    _, output = printed
    lines = README.read_text(encoding="utf-8").splitlines()
    said = {i: line.split(")  # ")[1] for i, line in enumerate(lines, start=1) if re.match(r" *print\(.*\)  # ", line)}
    assert said.keys() == output.keys()
    for line, text in said.items():
        pattern = text.replace("[", "[[]").replace("...", "*")
        assert fnmatchcase(output[line], pattern), f"README.md:{line}: expected {text}, got {output[line]}"


@pytest.mark.parametrize("block", blocks_of("sh"), ids=lambda block: f"line{block.line}")
def test_shell_blocks_are_shell(block):
    bash = shutil.which("bash")
    if bash is None or sys.platform == "win32":
        pytest.skip("needs bash")
    subprocess.run([bash, "-n"], input=block.code, text=True, check=True)


def test_deepnet_commands_parse():
    shell = "\n".join(block.code for block in blocks_of("sh"))
    commands = re.findall(r"(?:^|[ (/])deepnet ([^&;|)\n]+)", shell, re.MULTILINE)
    parsed = [cli._parser().parse_args(shlex.split(command, comments=True)) for command in commands]
    runs = {"_root", "_train", "_evaluate", "_predict", "_sample", "_info", "_filter"}
    assert runs == {options.run.__name__ for options in parsed}


def test_one_line_runs_the_tests():
    """.ci/run takes it from here."""
    lines = [line for block in blocks_of("sh") for line in block.code.splitlines() if "pytest" in line]
    assert len(lines) == 1


def test_cpp_program_builds_and_runs(printed, build, tmp_path):
    (cmake,), (program,) = blocks_of("cmake"), blocks_of("cpp")
    source = tmp_path / "app"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(cmake.code)
    (source / "app.cpp").write_text(program.code)
    logits, error = run(build(source) / "app", cwd=printed[0]).splitlines()
    assert len(logits.split()) == 10
    assert float(error) > 0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vanishing_gradient", ["--epochs", "1"]),
        ("vanishing_in_time", ["--steps", "20", "--batches", "2"]),
        ("sobel", ["--size", "40"]),
    ],
)
def test_examples_draw_the_figures(name, arguments, tmp_path):
    require("matplotlib")
    figure = tmp_path / f"{name}.png"
    run(sys.executable, REPOSITORY / "python" / "examples" / f"{name}.py", *arguments, "--output", figure)
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_examples_learn_from_sequences(tmp_path, rng):
    """Each a little: what they come to is in README.md, and takes minutes."""
    require("statsmodels")
    examples = REPOSITORY / "python" / "examples"
    memory = run(sys.executable, examples / "long_memory.py", "--steps", "20", "--batches", "2")
    assert [line.split()[0] for line in memory.splitlines()] == ["adding"] * 3 + ["order"] * 3 + ["copy"] * 3
    forecast = run(sys.executable, examples / "forecast.py", "--epochs", "12", "--output", tmp_path / "f.png")
    errors = dict(re.findall(r"^([\w ]+?) +(\d\.\d{3})$", forecast, re.MULTILINE))
    assert float(errors["GRU"]) < 0.85 * float(errors["seasonal naive"])
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(rng.integers(0, 256, (20, 28, 28))))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(20) % 10))
    rows = run(sys.executable, examples / "fashion_rows.py", "--epochs", "1", "--hidden", "8", "--data", tmp_path)
    assert "epoch  1: test accuracy" in rows


def test_pictures_and_paths_exist():
    text = README.read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(pictures) == 3
    paths = re.findall(r"`((?:cpp|python|tests|bench)/[\w./-]*)`", text)
    assert [path for path in pictures + paths if not (REPOSITORY / path).exists()] == []
