"""Model files: they come back as they went, and nothing malformed gets in."""

import contextlib
import json
import os
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

import deepnet as dn
from checks import assert_same_bits, attempt_python, normal, run_python, weights
from deepnet import nn, optim


def every_layer():
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1), groups=2, bias=False),
        nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, 1, 1), nn.Conv2d(4, 4, 3, padding="same")),
        nn.AvgPool2d((2, 1)), nn.LeakyReLU(0.2), nn.ELU(0.7), nn.GELU(), nn.SiLU(), nn.Sigmoid(), nn.Tanh(),
        nn.Softplus(2.0), nn.Dropout(0.3), nn.Softmax(1), nn.LogSoftmax(-1), nn.GlobalAvgPool2d(), nn.Flatten(),
        nn.Linear(4, 3), nn.Linear(3, 2, bias=False),
    )  # fmt: skip


@pytest.fixture
def saved(tmp_path, rng):
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    path = tmp_path / "m.safetensors"
    net.save(path)
    return net, path


# --- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_path", [str, Path])
def test_network_comes_back_as_it_went(tmp_path, rng, as_path):
    net, path = every_layer(), as_path(tmp_path / "net.safetensors")
    x = normal(rng, (3, 2, 12, 12))
    net.save(path)
    back = dn.load(path)
    assert repr(back) == repr(net)
    assert list(back.parameters()) == list(net.parameters())
    for name, w in weights(net).items():
        assert_same_bits(weights(back)[name], w)
    assert_same_bits(back.predict(x), net.predict(x))
    back.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == Path(path).read_bytes()


def test_single_layer_comes_back(tmp_path):
    layer = nn.Linear(3, 2)
    layer.save(tmp_path / "layer")
    assert_same_bits(dn.load(tmp_path / "layer").state_dict()["weight"], layer.state_dict()["weight"])


def test_training_goes_on_where_it_was(tmp_path, rng):
    """Saved with its optimizer's state, training continues with the same bits as if it had not stopped."""
    x, y = normal(rng, (32, 4)), rng.integers(0, 2, 32)
    net, optimizer = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), optim.SGD(0.1, momentum=0.9)
    net.fit(x, y, optimizer=optimizer, progress=False, epochs=2)
    net.save(tmp_path / "m", optimizer=optimizer)
    net.fit(x, y, optimizer=optimizer, progress=False, epochs=2)

    other, resumed = dn.load(tmp_path / "m"), optim.SGD(0.1, momentum=0.9)
    dn.load_optimizer_state(other, resumed, tmp_path / "m")
    other.fit(x, y, optimizer=resumed, progress=False, epochs=2)
    for name, w in weights(net).items():
        assert_same_bits(weights(other)[name], w)


def test_metadata_go_with_the_network(tmp_path):
    net, path = nn.Sequential(nn.Linear(4, 3)), tmp_path / "m"
    assert net.metadata == {}
    texts = {"alphabet": 'aä本\n\x00"\\', "": "", "comment": "x" * 10_000}
    net.metadata = texts
    net.save(path)
    assert split(path.read_bytes())[0]["__metadata__"].items() > texts.items()
    back = dn.load(path)
    assert back.metadata == texts
    back.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    dn.Trainer(back, nn.MSELoss(), optim.SGD(0.1)).save(path)
    assert dn.load(path).metadata == texts
    assert nn.Sequential(nn.Linear(4, 3)).metadata == {}


def test_metadata_are_not_shared_between_networks():
    with pytest.raises(TypeError):
        nn.Linear(1, 1).metadata["a"] = "b"
    a, b = nn.Linear(1, 1), nn.Linear(1, 1)
    a.metadata = {"a": "b"}
    assert b.metadata == {}


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ({"format": "pt"}, ValueError),
        ({"structure": "{}"}, ValueError),
        ({"optimizer": ""}, ValueError),
        ({"deepnet_version": "2"}, ValueError),
        ({"deepnet_later": ""}, ValueError),
        ({"a": 1}, TypeError),
        ({1: "a"}, TypeError),
        ({"a": "\ud800"}, ValueError),
        ("text", TypeError),
        (None, TypeError),
    ],
)
def test_bad_metadata_write_nothing(saved, metadata, error):
    net, path = saved
    before = path.read_bytes()
    net.metadata = metadata
    with pytest.raises(error, match=r"^\[save\]"):
        net.save(path)
    assert path.read_bytes() == before


def test_a_file_has_the_optimizer_too(tmp_path, rng):
    """Class and settings as well as state: what is loaded goes on with the same bits."""
    x, y = rng.standard_normal((64, 4)).astype(np.float32), rng.integers(0, 2, 64)
    net, optimizer = nn.Sequential(nn.Linear(4, 2)), optim.SGD(0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)
    net.fit(x, y, optimizer=optimizer, progress=False)
    dn.Trainer(net, nn.CrossEntropyLoss(), optimizer).save(tmp_path / "m")
    other = dn.load(tmp_path / "m")
    resumed = dn.load_optimizer(other, tmp_path / "m")
    assert type(resumed) is optim.SGD
    for name in ("lr", "momentum", "weight_decay", "nesterov"):
        assert getattr(resumed, name) == getattr(optimizer, name)
    for a, b in ((net, optimizer), (other, resumed)):
        a.fit(x, y, optimizer=b, progress=False, epochs=2)
    for name, w in weights(net).items():
        assert_same_bits(other.state_dict()[name], w)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (rb"\"SGD\"", rb"\"SGX\"", "expected one of .*'SGD'.*, got 'SGX'"),
        (rb"\"lr\"", rb"\"xx\"", "expected settings of SGD"),
        (rb"\"lr\":0.5", rb"\"lr\":-.5", "class and settings"),
        (rb'"{\"config\":{\"lr', rb'"[\"config\":{\"lr', "class and settings"),
        (b'"optimizer":"', b'"optimiser":"', "got one without"),
        (b'{"0.bias"', b'["0.bias"', "JSON object"),
    ],
)
def test_optimizers_that_no_file_should_have(tmp_path, old, new, message):
    net = nn.Sequential(nn.Linear(4, 2))
    net.save(tmp_path / "m", optimizer=optim.SGD(0.5))
    contents = (tmp_path / "m").read_bytes()
    assert old in contents
    (tmp_path / "m").write_bytes(contents.replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"^\[load_optimizer\].*{message}"):
        dn.load_optimizer(net, tmp_path / "m")
    (tmp_path / "m").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="whose header ends in it"):
        dn.load_optimizer(net, tmp_path / "m")


def test_advice_for_weights_of_others_names_what_python_has(saved, tmp_path):
    _, path = saved
    (tmp_path / "foreign").write_bytes(path.read_bytes().replace(b'"format":"deepnet"', b'"format":"foreign"'))
    with pytest.raises(ValueError, match=r"net\.load_state_dict takes what safetensors\.numpy\.load_file reads$"):
        dn.load(tmp_path / "foreign")


def test_optimizer_state_that_is_not_there(saved):
    net, path = saved
    with pytest.raises(ValueError, match="without an optimizer's state"):
        dn.load_optimizer_state(net, optim.SGD(0.1), path)


def test_an_optimizer_of_another_network_is_not_saved(tmp_path, rng):
    """Its state would be missing in the file, and training would go on without it."""
    trained, other, x = nn.Linear(2, 2), nn.Linear(2, 2), normal(rng, (4, 2))
    for optimizer in (optim.Adam(), optim.SGD(lr=0.1)):
        other.save(tmp_path / "m", optimizer=optimizer)  # a new one
        dn.Trainer(trained, nn.MSELoss(), optimizer).step(x, x)
        with pytest.raises(
            ValueError, match=r"\[save\] expected the optimizer that trained this network, or a new one"
        ):
            other.save(tmp_path / "m", optimizer=optimizer)
        trained.save(tmp_path / "m", optimizer=optimizer)


def test_file_is_safetensors_that_others_read(saved):
    net, path = saved
    header, contents = split(path.read_bytes())
    assert set(header) - {"__metadata__"} == set(net.parameters())
    structure = json.loads(header["__metadata__"]["structure"])
    assert structure["kind"] == "Sequential"
    for name, parameter in net.parameters().items():
        entry = header[name]
        assert entry["dtype"] == "F32"
        begin, end = entry["data_offsets"]
        assert_same_bits(np.frombuffer(contents[begin:end], np.float32).reshape(entry["shape"]), parameter.data)


def test_a_python_layer_cannot_be_saved(tmp_path):
    class Mine(nn.Layer):
        def forward(self, x):
            return x

    with pytest.raises((TypeError, ValueError), match="Mine"):
        nn.Sequential(nn.Linear(2, 2), Mine()).save(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


# --- writing ---------------------------------------------------------------------------------------------------------


def test_save_replaces_and_leaves_nothing_else(saved, tmp_path):
    _, path = saved
    nn.Linear(1, 1).save(path)
    assert repr(dn.load(path)) == repr(nn.Linear(1, 1))
    assert list(tmp_path.iterdir()) == [path]


def test_save_to_where_nothing_can_be_written(saved, tmp_path):
    net, path = saved
    before = path.read_bytes()
    with pytest.raises(FileNotFoundError, match="none"):
        net.save(tmp_path / "none" / "m")
    with pytest.raises(OSError, match=r"directory"):
        net.save(tmp_path)
    if os.name == "posix" and os.geteuid() != 0:
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(PermissionError):
                net.save(path)
        finally:
            tmp_path.chmod(0o700)
    assert path.read_bytes() == before


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    """On a full disk: here a limit on the size of files."""
    pytest.importorskip("resource")
    code = f"""if True:
        import resource, signal, os
        from deepnet import nn
        path = {str(tmp_path / "m")!r}
        nn.Linear(3, 2).save(path)
        before = open(path, "rb").read()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            nn.Linear(300, 200).save(path)
        except OSError as error:
            print("refused", os.listdir({str(tmp_path)!r}), open(path, "rb").read() == before)
    """
    assert run_python(code).strip() == "refused ['m'] True"


# --- reading what should not be read ---------------------------------------------------------------------------------


def split(contents):
    (length,) = struct.unpack("<Q", contents[:8])
    return json.loads(contents[8 : 8 + length]), contents[8 + length :]


def join(header, contents, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + contents


def changed(change):
    """A damage done to the parsed header."""

    def damage(contents):
        header, rest = split(contents)
        change(header)
        return join(header, rest)

    return damage


def text_changed(old, new):
    def damage(contents):
        header, rest = split(contents)
        text = json.dumps(header).encode()
        assert old in text
        return join(text.replace(old, new), rest)

    return damage


def structure_changed(old, new):
    def change(header):
        structure = header["__metadata__"]["structure"]
        assert old in structure, structure
        header["__metadata__"]["structure"] = structure.replace(old, new)

    return changed(change)


def set_entry(name, key, value):
    return changed(lambda header: header[name].__setitem__(key, value))


def duplicated(contents):
    header, rest = split(contents)
    text = json.dumps(header).encode()
    entry = json.dumps({"0.bias": header["0.bias"]}).encode()[1:-1]
    return join(text[:-1] + b", " + entry + b"}", rest)


def hole(contents):
    header, rest = split(contents)
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    last = next(n for n, entry in header.items() if n != "__metadata__" and entry["data_offsets"][1] == end)
    header[last]["data_offsets"] = [offset + 4 for offset in header[last]["data_offsets"]]
    return join(header, rest + bytes(4))


DAMAGES = {
    "empty": lambda c: b"",
    "seven bytes": lambda c: c[:7],
    "length alone": lambda c: c[:8],
    "header cut": lambda c: c[:40],
    "data cut": lambda c: c[:-1],
    "trailing byte": lambda c: c + b"\0",
    "header longer than the file": lambda c: struct.pack("<Q", len(c)) + c[8:],
    "header of 2^63 bytes": lambda c: struct.pack("<Q", 2**63) + c[8:],
    "header of 2^64 - 1 bytes": lambda c: b"\xff" * 8 + c[8:],
    "header of nothing": lambda c: join(b"", b""),
    "header is an array": lambda c: join(b"[1, 2]", b""),
    "header is not JSON": lambda c: join(b"{nonsense}", b""),
    "header ends early": lambda c: join(b'{"a": {"dtype"', b""),
    "header is not UTF-8": lambda c: join(b'{"\xff\xfe": 1}', b""),
    "header begins with a space": lambda c: join(b" " + json.dumps(split(c)[0]).encode(), split(c)[1]),
    "header with junk after it": lambda c: join(json.dumps(split(c)[0]).encode() + b" x", split(c)[1]),
    "header nested deeply": lambda c: join(b'{"a":' * 100_000, b""),
    "duplicate tensor": duplicated,
    "duplicate key": text_changed(b'"dtype": "F32"', b'"dtype": "F32", "dtype": "F32"'),
    "unknown key": set_entry("0.bias", "colour", "red"),
    "no dtype": changed(lambda h: h["0.bias"].pop("dtype")),
    "no offsets": changed(lambda h: h["0.bias"].pop("data_offsets")),
    "unknown dtype": set_entry("0.bias", "dtype", "F128"),
    "dtype a number": set_entry("0.bias", "dtype", 3),
    "shape too large": set_entry("0.bias", "shape", [4]),
    "shape negative": set_entry("0.bias", "shape", [-3]),
    "shape a float": set_entry("0.bias", "shape", [3.0]),
    "shape a string": set_entry("0.bias", "shape", "3"),
    "shape overflows": set_entry("0.bias", "shape", [2**32, 2**32, 2**32]),
    "shape above 64 bits": set_entry("0.bias", "shape", [2**70]),
    "shape of nine axes": set_entry("0.bias", "shape", [1] * 8 + [3]),
    "offsets backwards": set_entry("0.bias", "data_offsets", [12, 0]),
    "offsets beyond the end": set_entry("0.bias", "data_offsets", [2**40, 2**40 + 12]),
    "offsets negative": set_entry("0.bias", "data_offsets", [-12, 0]),
    "three offsets": set_entry("0.bias", "data_offsets", [0, 12, 24]),
    "overlap": changed(lambda h: h["0.bias"].__setitem__("data_offsets", h["2.bias"]["data_offsets"][:1] * 2)),
    "hole": hole,
    "entry is null": changed(lambda h: h.__setitem__("0.bias", None)),
    "metadata not text": changed(lambda h: h["__metadata__"].__setitem__("structure", 3)),
    "no metadata": changed(lambda h: h.pop("__metadata__")),
    "no structure": changed(lambda h: h["__metadata__"].pop("structure")),
    "structure not JSON": changed(lambda h: h["__metadata__"].__setitem__("structure", "Linear(4, 3)")),
    "structure of an unknown layer": structure_changed("ReLU", "Exec"),
    "structure with other sizes": structure_changed('"in_features":4', '"in_features":5'),
    "structure with enormous sizes": structure_changed('"in_features":4', '"in_features":4611686018427387904'),
    "structure with huge sizes": structure_changed('"in_features":4', '"in_features":4000000000'),
    "structure with negative sizes": structure_changed('"in_features":4', '"in_features":-4'),
    "structure with a string for a size": structure_changed('"in_features":4', '"in_features":"4"'),
    "structure nested deeply": changed(
        lambda h: h["__metadata__"].__setitem__("structure", '{"kind":"Sequential","config":{},"layers":[' * 50_000)
    ),
    "tensor missing": changed(lambda h: h.pop("2.bias")),
    "tensor renamed": text_changed(b'"0.bias"', b'"9.bias"'),
    "pickle": lambda c: pickle.dumps({"weights": [1, 2, 3]}),
    "zip": lambda c: b"PK\x03\x04" + bytes(100),
    "random": lambda c: np.random.default_rng(0).bytes(4096),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_refused(saved, name):
    _, path = saved
    path.write_bytes(DAMAGES[name](path.read_bytes()))
    with pytest.raises(ValueError, match=r"^\[load\]|^\[structure|^\[\w+\] ") as error:
        dn.load(path)
    assert "\n" not in str(error.value)


def test_header_above_the_formats_limit(tmp_path):
    path = tmp_path / "m"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(100_000_100)  # sparse
    with pytest.raises(ValueError, match="100 MB"):
        dn.load(path)


def test_every_byte_of_the_header_may_be_wrong(saved):
    """No single flipped byte crashes, and what still loads has finite sizes."""
    _, path = saved
    contents = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", contents[:8])
    random = np.random.default_rng(0)
    for position in range(8 + length):
        damaged = contents.copy()
        damaged[position] ^= int(random.integers(1, 256))
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            dn.load(path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on memory")
def test_claims_are_checked_before_memory_is_asked_for(saved):
    """A file of a few bytes that claims 4 GB is refused within 1 GB of address space beyond what is in use."""
    _, path = saved
    contents = path.read_bytes()
    for name in ("structure with huge sizes", "shape overflows", "offsets beyond the end"):
        path.write_bytes(DAMAGES[name](contents))
        code = f"""if True:
            import resource, deepnet as dn
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
            try:
                dn.load({str(path)!r})
            except ValueError:
                print("refused")
        """
        result = attempt_python(code)
        assert result.stdout.strip() == "refused", (name, result.stderr)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        dn.load(tmp_path / "none.safetensors")
    with pytest.raises(OSError, match=r"directory"):
        dn.load(tmp_path)
    with pytest.raises(TypeError):
        dn.load(3)


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="file names there are Unicode")
def test_file_names_that_are_no_text(tmp_path):
    """Any bytes are a file name; Python shows those that are no UTF-8 as surrogates."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.safetensors")
    net, optimizer = nn.Linear(2, 1), optim.SGD(lr=0.1, momentum=0.9)
    net.save(path, optimizer)
    assert os.path.exists(path)
    assert_same_bits(dn.load(path).weight.data, net.weight.data)
    dn.load_optimizer_state(net, optimizer, path)
    Path(path).write_bytes(b"short")
    with pytest.raises(ValueError, match="caf\udce9"):
        dn.load(path)


def test_system_errors_have_the_file_name(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/none\xe9/m.safetensors")
    for attempt in (lambda: dn.load(path), lambda: nn.Linear(2, 1).save(path)):
        with pytest.raises(FileNotFoundError) as info:
            attempt()
        assert info.value.filename == path
        assert str(info.value).count("none") == 1
