"""The benchmarks start, find that the libraries agree, and print what they promise; times are not looked at."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from checks import run_python
from conftest import require

BENCH = Path(__file__).resolve().parents[2] / "bench"
QUICK = ("--threads", "1", "--repeats", "1", "--block", "0.001")


def run(script, *arguments, status=0):
    # What it imports is the package under test, wherever that lies.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(BENCH / script), *QUICK, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


def test_table(torch, tmp_path):
    del torch
    require("matplotlib")
    picture = tmp_path / "roofline.png"
    selection = ("--only", "training", "--no-compile", "--plot", str(picture))
    printed = run("table.py", *selection, "--rows", "4-24-3", "--peak", "100", "--bandwidth", "10")
    row = next(line for line in printed.splitlines() if line.startswith("| mlp 4-24-3 | 8x4 |"))
    assert "**" in row
    assert row.endswith("% |")
    assert picture.stat().st_size > 1000


def test_choices():
    code = (
        f"import sys; sys.path.insert(0, {str(BENCH)!r}); sys.argv = ['choices.py', '--worst', '1']\n"
        "import choices; choices.shapes = lambda: [choices.Shape(24, 8, 8, 9, 3, 1)]; choices.main()"
    )
    printed = run_python(code)
    for product in ("forward", "backward_data", "backward_weight"):
        assert f"{product}: 1 shapes, " in printed
    assert printed.count("3x3/1, 8 to 8, 24x9x9: ") == 3


def test_disagreement_ends_the_program(bench):
    from agreement import require_close

    require_close("same", [1.0, 2.0], [1.0, 2.0], 0)
    for got in ([1.0, 2.1], [float("nan"), 2.0], [1.0, 2.0, 3.0]):
        with pytest.raises(SystemExit, match="expected deepnet"):
            require_close("other", got, [1.0, 2.0], 1e-3)


def test_scaling(bench, tmp_path):
    require("matplotlib")
    from scaling import ALLOWED, draw, fit_line

    work = [1.0, 10.0, 100.0, 1000.0]
    line = fit_line(work, [3 + 2 * w for w in work])
    assert line.start == pytest.approx(3)
    assert line.slope == pytest.approx(2)
    assert ALLOWED == 0.15
    draw(tmp_path / "scaling.png", {"straight": (work, [3 + 2 * w for w in work], line)})
    assert (tmp_path / "scaling.png").stat().st_size > 1000
