"""Choosing convolution algorithms by time: which there are, what their file keeps, and what goes wrong with it.

A choice holds until the process ends, so that every test has processes of its own.
"""

import json
import os

import numpy as np
import pytest

import deepnet as dn
from checks import attempt_python, run_python

# Layer and input shapes that several algorithms apply to; images fill the vectors of every instruction set.
SHAPES = [
    ({"in_channels": 16, "out_channels": 24, "kernel_size": 3, "padding": 1}, (24, 16, 10, 11)),
    ({"in_channels": 32, "out_channels": 32, "kernel_size": 3, "padding": 3}, (24, 32, 9, 10)),
    ({"in_channels": 9, "out_channels": 8, "kernel_size": 3}, (25, 9, 9, 8)),
    ({"in_channels": 16, "out_channels": 20, "kernel_size": 3, "padding": 1, "groups": 2}, (24, 16, 6, 7)),
    ({"in_channels": 5, "out_channels": 7, "kernel_size": 3, "stride": 2, "padding": 1}, (24, 5, 12, 9)),
    ({"in_channels": 3, "out_channels": 6, "kernel_size": 5, "padding": 2}, (26, 3, 9, 9)),
    ({"in_channels": 6, "out_channels": 6, "kernel_size": 3, "padding": 1, "groups": 6}, (24, 6, 8, 8)),
    ({"in_channels": 8, "out_channels": 5, "kernel_size": 1, "stride": 2}, (24, 8, 7, 9)),
    ({"in_channels": 8, "out_channels": 12, "kernel_size": 3, "padding": 2, "dilation": 2}, (2, 8, 9, 10)),
]
RUN = f"""
import numpy as np, sys
sys.path.insert(0, {str(__file__.rpartition("test_autotune")[0])!r})
import reference
import deepnet as dn
from deepnet import nn
dn.autotune(cache=sys.argv[1] if len(sys.argv) > 1 else False)
rng = np.random.default_rng(0)
def largest_error(got, want):
    return np.abs(got - want).max() / np.abs(want).max()
errors = []
for arguments, shape in {SHAPES!r}:
    layer = nn.Conv2d(**arguments)
    x = rng.standard_normal(shape).astype(np.float32)
    y = layer(x)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    dx = layer.backward(dy)
    options = {{k: v for k, v in arguments.items() if k in ("stride", "padding", "dilation", "groups")}}
    weight, bias = np.float64(layer.weight.data), np.float64(layer.bias.data)
    wants = reference.conv2d(np.float64(x), weight, bias, **options), *reference.conv2d_backward(
        np.float64(x), weight, np.float64(dy), **options)
    errors.append(max(map(largest_error, (y, dx, layer.weight.grad, layer.bias.grad), wants)))
print(max(errors))
"""
ALGORITHMS = ["depthwise", "implicit", "lanes", "winograd", "turned_winograd", "col2im"]


def choices_of(path):
    return json.loads(path.read_text())["choices"][dn.active_isa()]


def run_tuned(path, code=RUN, **environment):
    return run_python(f"import sys; sys.argv = ['', {str(path)!r}]\n" + code, **environment)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The file after a first run."""
    path = tmp_path_factory.mktemp("tuned") / "folder" / "choices.json"
    assert float(run_tuned(path)) < 5e-6
    return path


def test_every_product_is_decided_and_kept(tuned):
    choices = choices_of(tuned)
    products = [entry["product"] for entry in choices]
    assert set(products) == {"forward", "backward_data", "backward_weight"}
    assert products.count("backward_data") == len(SHAPES), "of which there is always a second algorithm"
    assert {entry["algorithm"] for entry in choices} <= set(ALGORITHMS)
    content = json.loads(tuned.read_text())
    assert content["deepnet"] == dn.__version__
    assert content["cpu"]


@pytest.mark.parametrize("isa", dn.available_isas())
def test_results_are_right_whatever_is_chosen(isa, tmp_path):
    """An algorithm that the file names everywhere is taken where it applies; elsewhere another is timed."""
    path = tmp_path / "choices.json"
    assert float(run_tuned(path, DEEPNET_ISA=isa)) < 5e-6
    first = json.loads(path.read_text())
    for algorithm in ALGORITHMS:
        for entry in first["choices"][isa]:
            entry["algorithm"] = algorithm
        path.write_text(json.dumps(first))
        assert float(run_tuned(path, DEEPNET_ISA=isa)) < 5e-6
        kept = [entry["algorithm"] for entry in json.loads(path.read_text())["choices"][isa]]
        assert algorithm in kept, "applies to one of the shapes at least"
        if algorithm == "implicit":
            assert set(kept) == {"implicit"}, "which applies everywhere: nothing was timed"


def test_choices_are_taken_from_the_file(tuned):
    before = tuned.read_text()
    run_tuned(tuned)
    assert tuned.read_text() == before


def test_same_bits_on_any_number_of_threads(tuned):
    code = """
import numpy as np, sys
import deepnet as dn
from deepnet import nn
dn.autotune(cache=sys.argv[1])
x = np.random.default_rng(0).standard_normal((24, 16, 10, 11)).astype(np.float32)
dn.manual_seed(0)
layer = nn.Conv2d(16, 24, 3, padding=1)
bits = set()
for threads in (1, 2, 3):
    with dn.threads(threads):
        layer.zero_grad()
        y = layer(x)
        dx = layer.backward(y)
        bits.add((y.tobytes(), dx.tobytes(), layer.weight.grad.tobytes(), layer.bias.grad.tobytes()))
print(len(bits))
"""
    assert run_tuned(tuned, code).strip() == "1"


FIRST = """
import numpy as np, sys
import deepnet as dn
from deepnet import nn
def run(height):
    layer = nn.Conv2d(4, 4, 3)
    return layer.backward(layer(np.ones((2, 4, height, 9), np.float32)))
"""


def test_what_was_planned_before_stays(tmp_path):
    path = tmp_path / "choices.json"
    run_tuned(path, FIRST + "run(8); dn.autotune(cache=sys.argv[1]); run(8); run(9)")
    assert {entry["shape"][2] for entry in choices_of(path)} == {9}


def test_turned_off_nothing_more_is_timed(tmp_path):
    path = tmp_path / "choices.json"
    run_tuned(path, FIRST + "dn.autotune(cache=sys.argv[1]); run(8); dn.autotune(False); run(9)")
    assert {entry["shape"][2] for entry in choices_of(path)} == {8}


def test_inference_times_no_gradients(tmp_path):
    path = tmp_path / "choices.json"
    code = FIRST + (
        "dn.autotune(cache=sys.argv[1])\n"
        "nn.Sequential(nn.Conv2d(16, 16, 3)).predict(np.ones((24, 16, 8, 9), np.float32), batch_size=24)"
    )
    run_tuned(path, code)
    assert {entry["product"] for entry in choices_of(path)} == {"forward"}


def test_the_default_file_is_named_after_the_cpu(tmp_path):
    run_python(FIRST + "dn.autotune(); run(8)", XDG_CACHE_HOME=str(tmp_path))
    [path] = tmp_path.glob("deepnet/autotune-*.json")
    assert choices_of(path)


def test_without_a_file_choices_last_as_long_as_the_process(tmp_path):
    run_python(FIRST + "dn.autotune(cache=False); run(8)", XDG_CACHE_HOME=str(tmp_path), HOME=str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stale", ["deepnet", "cpu"])
def test_a_file_of_another_machine_or_version_is_begun_anew(stale, tuned, tmp_path):
    content = json.loads(tuned.read_text())
    content[stale] = "another"
    path = tmp_path / "choices.json"
    path.write_text(json.dumps(content))
    run_tuned(path, FIRST + "dn.autotune(cache=sys.argv[1]); run(8)")
    assert {entry["shape"][2] for entry in choices_of(path)} == {8}
    assert json.loads(path.read_text())[stale] != "another"


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"product": "forward", "shape": [1, 2], "algorithm": "lanes"},
        {"product": "sideways", "shape": [1] * 17, "algorithm": "lanes"},
        {"product": "forward", "shape": [1] * 17, "algorithm": "magic"},
        {"product": "forward", "shape": "long", "algorithm": 3},
        7,
    ],
    ids=str,
)
def test_entries_that_mean_nothing_are_none(entry, tuned, tmp_path):
    content = json.loads(tuned.read_text())
    kept = content["choices"][dn.active_isa()]
    content["choices"][dn.active_isa()] = [entry, *kept]
    path = tmp_path / "choices.json"
    path.write_text(json.dumps(content))
    run_tuned(path, "import deepnet as dn; dn.autotune(cache=sys.argv[1])")
    assert choices_of(path) == kept


@pytest.mark.parametrize("text", ["", "{", "[]", '{"choices": 3}', "\0\0", '{"a": 1}'])
def test_a_file_of_something_else_is_refused_and_left_alone(text, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"\[autotune\].*notes.txt.*delete"):
        dn.autotune(cache=path)
    assert path.read_text() == text


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="autotune"):
        dn.autotune(cache=tmp_path / "file" / "choices.json")
    with pytest.raises(OSError, match="autotune"):
        dn.autotune(cache=tmp_path)


@pytest.mark.parametrize("arguments", [{"on": 1}, {"on": "yes"}, {"cache": True}, {"cache": 3}], ids=str)
def test_arguments_of_another_type_are_refused(arguments):
    with pytest.raises(TypeError, match=r"\[autotune\] expected"):
        dn.autotune(**arguments)


def test_losing_the_file_on_the_way_loses_no_work(tmp_path):
    path = tmp_path / "folder" / "choices.json"
    code = FIRST + (
        "import shutil; dn.autotune(cache=sys.argv[1]); run(8)\n"
        "shutil.rmtree(sys.argv[1].rpartition('/')[0]); print(np.isfinite(run(9)).all())"
    )
    assert run_tuned(path, code).strip() == "True"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_process_forked_while_times_are_taken_goes_on():
    code = """
import os, signal, threading, time
import numpy as np
import deepnet as dn
from deepnet import nn
dn.autotune(cache=False)
tuned = threading.Thread(target=lambda: nn.Conv2d(8, 8, 3, padding=1)(np.zeros((16, 8, 16, 16))))
tuned.start()
while tuned.is_alive():
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        nn.Conv2d(3, 4, 3)(np.zeros((1, 3, 9, 9)))
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    time.sleep(0.05)
"""
    run_python(code)


def test_a_network_trains_the_same_but_for_rounding(tmp_path):
    code = """
import numpy as np, sys
import deepnet as dn
from deepnet import nn, optim
if len(sys.argv) > 2:
    dn.autotune(cache=sys.argv[1])
dn.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
                    nn.Conv2d(16, 8, 1), nn.Flatten(), nn.Linear(8 * 100, 4))
rng = np.random.default_rng(0)
x, y = rng.standard_normal((32, 3, 12, 12)).astype(np.float32), rng.integers(0, 4, 32)
trainer = dn.Trainer(net, nn.CrossEntropyLoss(), optim.SGD(lr=0.1))
print(*[trainer.step(x, y) for _ in range(5)])
"""
    path = tmp_path / "choices.json"
    plain = run_tuned(path, code)
    tuned = attempt_python(f"import sys; sys.argv = ['', {str(path)!r}, 'tuned']\n" + code)
    assert tuned.returncode == 0, tuned.stderr
    assert choices_of(path), "of layers inside a network too"
    np.testing.assert_allclose(np.float64(tuned.stdout.split()), np.float64(plain.split()), rtol=1e-5)
