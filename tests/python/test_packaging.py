"""What a C++ project gets from the installed package: found by CMake, built, and equal to Python to the last bit.

DEEPNET_PREFIX, if set, names a prefix that `cmake --install` filled; it is tested beside the wheel.
"""

import importlib.metadata
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import deepnet as dn
from deepnet import nn, optim

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ["wheel"] + (["prefix"] if "DEEPNET_PREFIX" in os.environ else [])


def run(*command, **options):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def cmake_directory():
    return Path(run(sys.executable, "-m", "deepnet", "--cmakedir").strip())


@pytest.fixture(scope="module", params=PACKAGES)
def build(request, tmp_path_factory):
    """build(source) configures and builds a project outside the repository; the folder of its programs."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed")
    package = cmake_directory() if request.param == "wheel" else Path(os.environ["DEEPNET_PREFIX"])
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []

    def build(source):
        folder = tmp_path_factory.mktemp(source.name)
        shutil.copytree(source, folder / "source")
        run(cmake, "-S", folder / "source", "-B", folder / "build", *generator,
            f"-DCMAKE_PREFIX_PATH={package}", "-DCMAKE_BUILD_TYPE=Release")  # fmt: skip
        run(cmake, "--build", folder / "build", "--config", "Release")
        release = folder / "build" / "Release"
        return release if release.is_dir() else folder / "build"

    return build


@pytest.fixture(scope="module")
def examples(build):
    return build(REPOSITORY / "cpp" / "examples")


def network():
    dn.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding="same"), nn.Tanh(), nn.MaxPool2d(2),
        nn.Conv2d(6, 10, 3, stride=2, padding=1, groups=2), nn.GELU(), nn.Flatten(),
        nn.Linear(10 * 4 * 3, 5), nn.Dropout(0.3), nn.Softmax(),
    )  # fmt: skip


def hexadecimal_floats(text):
    values = re.findall(r"-?0x[0-9a-f.]+p[+-]\d+", text)
    return np.array([float.fromhex(value) for value in values], dtype=np.float32)


def assert_same_bits(a, b):
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def write_idx(path, array):
    """Big-endian: 0, 0, type 8 (uint8), rank, sizes, bytes (yann.lecun.com/exdb/mnist)."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_cmakedir_is_the_folder_of_the_package_file():
    assert (cmake_directory() / "deepnetConfig.cmake").is_file()


def test_scikit_build_projects_are_told_where_the_package_is():
    (entry,) = importlib.metadata.entry_points(group="cmake.root", name="deepnet")
    assert cmake_directory() in [Path(folder) / "lib/cmake/deepnet" for folder in entry.load().__path__]


def test_installed_headers_are_the_public_ones():
    installed = cmake_directory().parents[2] / "include" / "deepnet"
    public = REPOSITORY / "cpp" / "include" / "deepnet"
    assert {path.name for path in installed.iterdir()} == {path.name for path in public.iterdir()}


def test_a_project_of_five_lines_gives_pythons_probabilities(build, tmp_path, rng):
    source = REPOSITORY / "tests" / "cpp" / "consumer"
    assert len((source / "CMakeLists.txt").read_text().splitlines()) == 5  # the minimum version and four more
    net = network()
    x = rng.standard_normal((9, 1, 16, 11)).astype(np.float32)
    net.save(tmp_path / "m.safetensors")
    x.tofile(tmp_path / "x.bin")

    output = run(build(source) / "consumer", tmp_path / "m.safetensors", tmp_path / "x.bin", *x.shape)
    assert_same_bits(hexadecimal_floats(output), net.predict(x).ravel())


def test_classify_gives_pythons_probabilities(examples, tmp_path, rng):
    logits = nn.Sequential(*list(network())[:-1])
    pixels = rng.integers(0, 256, (3, 16, 11), dtype=np.uint8)
    logits.save(tmp_path / "m.safetensors")
    write_idx(tmp_path / "three.idx", pixels)
    (tmp_path / "one.pgm").write_bytes(b"P5 11 16 255\n" + pixels[0].tobytes())

    probabilities = nn.Sequential(logits, nn.Softmax()).predict(pixels[:, None] / np.float32(255))
    output = run(examples / "classify", tmp_path / "m.safetensors", tmp_path / "three.idx", tmp_path / "one.pgm")
    assert_same_bits(hexadecimal_floats(output), np.concatenate([probabilities, probabilities[:1]]).ravel())
    classes = [int(found) for found in re.findall(r"class (\d+)", output)]
    assert classes == [*probabilities.argmax(1), probabilities[0].argmax()]


def test_classify_refuses_what_is_no_image(examples, tmp_path):
    network().save(tmp_path / "m.safetensors")
    (tmp_path / "bad.pgm").write_bytes(b"P5 11 16 255\nshort")
    result = subprocess.run(
        [examples / "classify", tmp_path / "m.safetensors", tmp_path / "bad.pgm"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "expected 176 pixels" in result.stderr


def shuffled(order, random):
    """train_idx's Fisher-Yates shuffle; std::mt19937 is NumPy's RandomState."""
    for i in range(len(order), 1, -1):
        j = int(random.randint(0, 2**32, dtype=np.uint32)) % i
        order[i - 1], order[j] = order[j], order[i - 1]
    return order


def test_train_idx_learns_pythons_weights(examples, tmp_path):
    (x, y), (x_test, y_test) = ((np.rint(255 * x), y) for x, y in dn.data.digits())
    for part, images, labels in (("train", x, y), ("t10k", x_test, y_test)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", images[:, 0])
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", labels)
    output = run(examples / "train_idx", tmp_path, 5, tmp_path / "m.safetensors")
    learned = dn.load(tmp_path / "m.safetensors")

    dn.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 2 * 2, 10),
    )  # fmt: skip
    trainer = dn.Trainer(net, nn.CrossEntropyLoss(), optim.SGD(lr=0.05, momentum=0.9))
    random, order = np.random.RandomState(0), np.arange(len(x))
    for _ in range(5):
        order = shuffled(order, random)
        for begin in range(0, len(x), 64):
            rows = order[begin : begin + 64]
            trainer.step(x[rows] / np.float32(255), y[rows])

    for name, parameter in net.parameters().items():
        assert_same_bits(learned.parameters()[name].data, parameter.data)
    correct = net.predict(x_test / np.float32(255)).argmax(1) == y_test
    assert output.rstrip().endswith(f"test accuracy {correct.mean():.4f}")
    assert correct.mean() > 0.8
