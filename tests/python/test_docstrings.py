"""Every public name says what it is, shows an example that runs, and names no argument that it lacks."""

import ast
import doctest
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import deepnet as dn
from deepnet import _core
from deepnet._fit import History
from deepnet._gradcheck import Report, TensorReport
from test_data import idx

RETURNED = [History, Report, TensorReport]  # public functions return them, though no public module has them


def class_members(cls):
    """A class and those of its bases that are ours, with their methods and properties: {name: object}."""
    found = {}
    for base in cls.__mro__:
        if not base.__module__.startswith("deepnet"):
            continue
        name = f"{base.__module__}.{base.__qualname__}"
        found[name] = base
        for attribute in vars(base):
            value = getattr(base, attribute)
            if (attribute == "__call__" or not attribute.startswith("_")) and (
                inspect.isroutine(value) or isinstance(value, property)
            ):
                found[f"{name}.{attribute}"] = value
    return found


def module_members(module):
    found = {module.__name__: module}
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.ismodule(value):
            found |= module_members(value)
        elif inspect.isclass(value):
            found |= class_members(value)
        elif callable(value):
            found[f"{module.__name__}.{name}"] = value
    return found


PUBLIC = module_members(dn)
for returned in RETURNED:
    PUBLIC |= class_members(returned)
MEMBERS = {name for name in PUBLIC if inspect.isclass(PUBLIC.get(name.rpartition(".")[0]))}
INNER = {f"deepnet._core.{name}": value for name, value in vars(_core).items() if callable(value) and name[0] != "_"}


def first_line(value):
    return (value.__doc__ or "").partition("\n")[0]


def is_native(value):
    """Whether pybind11 made it, which opens docstrings with a signature."""
    name = getattr(value, "__name__", "")
    return bool(name) and not inspect.isclass(value) and first_line(value).startswith((f"{name}(", "__init__("))


def doc_of(value):
    doc = inspect.cleandoc(value.__doc__ or "")
    return doc.partition("\n")[2].strip() if is_native(value) else doc


def documented_arguments(doc):
    """The names in its section "Parameters": each begins a line, with commas between and " : type" behind."""
    found = re.search(r"^Parameters\n-+\n(.*?)(?=\n\n\S|\Z)", doc, re.MULTILINE | re.DOTALL)
    lines = found[1].splitlines() if found else []
    return [name.strip() for line in lines if line[:1].strip() for name in line.partition(" : ")[0].split(",")]


def argument_names(node):
    """Of a function's syntax tree; the name of *args has its star."""
    arguments = node.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [argument.arg for argument in arguments.kwonlyargs]
    return [name for name in names if name != "self"]


def native_arguments(value):
    return argument_names(ast.parse(f"def {first_line(value)}: ...").body[0])


def read_stub():
    """Argument names of every function and method in _core.pyi."""
    tree = ast.parse((Path(dn.__file__).parent / "_core.pyi").read_text(encoding="utf-8"))
    functions = {}
    for outer in tree.body:
        if isinstance(outer, ast.FunctionDef):
            functions[outer.name] = argument_names(outer)
        elif isinstance(outer, ast.ClassDef):
            for inner in outer.body:
                if isinstance(inner, ast.FunctionDef) and not inner.decorator_list:
                    functions[f"{outer.name}.{inner.name}"] = argument_names(inner)
    return functions


STUB = read_stub()


def known_arguments(name, value):
    """What a caller may pass; of native code the stub tells, for only there *args have a name."""
    if getattr(value, "__module__", "deepnet._core") != "deepnet._core":  # slots of native classes have none
        return [argument for argument in inspect.signature(value).parameters if argument != "self"]
    if inspect.isclass(value):
        key = f"{value.__name__}.__init__"
    else:
        key = name.removeprefix("deepnet._core.") if "._core." in name else value.__name__
    return [argument.lstrip("*") for argument in STUB.get(key, [])]


@pytest.mark.parametrize("name", PUBLIC | INNER)
def test_says_what_it_is(name):
    assert re.match(r"\S.{9,}", doc_of((PUBLIC | INNER)[name])), f"{name} has no docstring"


@pytest.mark.parametrize("name", PUBLIC)
def test_documents_the_arguments_that_it_has(name):
    """All of them or, where the text is enough, none."""
    documented = documented_arguments(doc_of(PUBLIC[name]))
    if documented:
        assert sorted(documented) == sorted(known_arguments(name, PUBLIC[name]))


def test_notices_an_argument_that_is_not_there():
    def wrong(array):
        """Documents another one.

        Parameters
        ----------
        array, kernel : ndarray
            Of which there is one.

        Raises
        ------
        ValueError
            Never.
        """

    assert documented_arguments(doc_of(wrong)) == ["array", "kernel"]
    assert known_arguments("wrong", wrong) == ["array"]


def test_the_stub_names_arguments_as_the_bindings_do():
    """Which mypy's stubtest cannot see, since native functions have no signature that Python understands."""
    compared = 0
    for name, arguments in STUB.items():
        value = _core
        for part in name.split("."):
            value = getattr(value, part)
        if is_native(value) and not name.endswith(("__enter__", "__exit__", "__getitem__")):
            compared += 1
            named = [argument for argument in arguments if argument[0] != "*"]
            assert named == [argument for argument in native_arguments(value) if argument[0] != "*"], name
    assert compared > 50


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in MEMBERS])
def test_shows_an_example(name):
    assert ">>>" in doc_of(PUBLIC[name]), f"{name} has no example"


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    """An empty folder to work in, with a data set where fashion_mnist looks first; threads are put back."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for part, n in (("train", 3), ("t10k", 2)):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(np.zeros((n, 28, 28))))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.zeros(n)))
    monkeypatch.setenv("DEEPNET_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    threads = dn.get_num_threads()
    yield
    dn.set_num_threads(threads)


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if ">>>" in doc_of(value)])
def test_example_runs(name, surroundings):
    if name == "deepnet.cmake_dir":
        try:
            dn.cmake_dir()
        except RuntimeError as error:
            pytest.skip(f"{error}")
    test = doctest.DocTestParser().get_doctest(doc_of(PUBLIC[name]), {"__name__": "example"}, name, None, None)
    report = []
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    assert results.attempted > 0
    assert results.failed == 0, "".join(report)
