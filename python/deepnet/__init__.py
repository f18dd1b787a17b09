"""Deep learning from first principles: layers that know only their own input and output.

>>> import numpy as np
>>> import deepnet as dn
>>> from deepnet import nn, optim
>>> layer = nn.Linear(3, 2)
>>> y = layer(np.ones((4, 3)))              # forward
>>> dx = layer.backward(np.ones_like(y))    # dE/dy in, dE/dx out, dE/dW added to each parameter's .grad

``deepnet.nn`` has the layers and losses, ``deepnet.optim`` the optimizers, ``deepnet.data`` the data sets,
``deepnet.image`` the convolution of a kernel over an array.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Literal

from deepnet import _core, nn, optim
from deepnet._core import (
    Parameter,
    ShapeError,
    Trainer,
    __version__,
    active_isa,
    available_isas,
    get_num_threads,
    manual_seed,
    set_num_threads,
    threads,
)

if TYPE_CHECKING:
    from deepnet import callbacks, data, image
    from deepnet._gradcheck import GradientError, gradcheck

__all__ = [
    "GradientError",
    "Parameter",
    "ShapeError",
    "Trainer",
    "__version__",
    "active_isa",
    "autotune",
    "available_isas",
    "callbacks",
    "cmake_dir",
    "data",
    "get_num_threads",
    "gradcheck",
    "image",
    "load",
    "load_optimizer",
    "load_optimizer_state",
    "manual_seed",
    "nn",
    "optim",
    "set_num_threads",
    "show_config",
    "threads",
]

# What `import deepnet` need not pay for: name -> module that has it, or is it.
_LAZY = {
    "GradientError": "deepnet._gradcheck",
    "callbacks": "deepnet.callbacks",
    "data": "deepnet.data",
    "gradcheck": "deepnet._gradcheck",
    "image": "deepnet.image",
}
# What this file imports for itself is no part of the library.
_IMPORTED = {"TYPE_CHECKING", "Literal", "annotations", "importlib", "os"}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'deepnet' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    value = getattr(module, name, module)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name not in _IMPORTED), *__all__})


def load(path: str | os.PathLike[str]) -> nn.Layer:
    """Read a network, structure and weights, from a file that :meth:`Layer.save <deepnet.nn.Layer.save>` wrote.

    Nothing in the file is executed, and nothing of the size that it claims is allocated before it is checked. The
    format is safetensors (github.com/huggingface/safetensors), with the structure as JSON in its metadata.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Layer
        The network, in training mode, with new parameters.

    Raises
    ------
    ValueError
        The file is malformed, or holds weights without a structure.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> import deepnet as dn
    >>> from deepnet import nn
    >>> nn.Sequential(nn.Linear(4, 3), nn.ReLU()).save("m.safetensors")
    >>> dn.load("m.safetensors")
    Sequential(
      (0): Linear(bias=True, in_features=4, out_features=3)
      (1): ReLU()
    )
    """
    try:
        net, metadata = _core.load(os.fspath(path))
    except ValueError as error:
        text, foreign, _ = str(error).partition("; read_safetensors reads those")
        if not foreign:
            raise
        raise ValueError(
            f"{text}; for a network of your own, net.load_state_dict takes what safetensors.numpy.load_file reads"
        ) from None
    net.metadata = metadata
    return net


def load_optimizer(net: nn.Layer, path: str | os.PathLike[str]) -> optim.Optimizer:
    """The optimizer of a file that was saved with one: its class, its settings and its state, to go on training.

    Parameters
    ----------
    net
        The network that was loaded from the file.
    path
        The file.

    Returns
    -------
    Optimizer
        A new one, as it was when it was saved.

    Raises
    ------
    ValueError
        The file is malformed, has no optimizer, or that of another network.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> import deepnet as dn
    >>> from deepnet import nn, optim
    >>> nn.Sequential(nn.Linear(4, 3)).save("m.safetensors", optimizer=optim.SGD(lr=0.1, momentum=0.9))
    >>> net = dn.load("m.safetensors")
    >>> optimizer = dn.load_optimizer(net, "m.safetensors")
    >>> optimizer.lr, optimizer.momentum
    (0.1, 0.9)
    """
    from deepnet._files import read_optimizer

    optimizer = read_optimizer(os.fspath(path))
    _core.load_optimizer_state(net, optimizer, os.fspath(path))
    return optimizer


def load_optimizer_state(net: nn.Layer, optimizer: optim.Optimizer, path: str | os.PathLike[str]) -> None:
    """Put the optimizer's state of a file that was saved with one into `optimizer`, to go on training.

    As :func:`load_optimizer`, but with settings of your own.

    Parameters
    ----------
    net
        The network that was loaded from the file.
    optimizer
        Of the class that was saved; its settings, such as lr, stay its own.
    path
        The file.

    Raises
    ------
    ValueError
        The file is malformed, has no optimizer's state, or that of another class or network.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> import deepnet as dn
    >>> from deepnet import nn, optim
    >>> net, optimizer = nn.Sequential(nn.Linear(4, 3)), optim.SGD(lr=0.1, momentum=0.9)
    >>> net.save("m.safetensors", optimizer=optimizer)
    >>> net, optimizer = dn.load("m.safetensors"), optim.SGD(lr=0.1, momentum=0.9)
    >>> dn.load_optimizer_state(net, optimizer, "m.safetensors")
    """
    _core.load_optimizer_state(net, optimizer, os.fspath(path))


def autotune(on: bool = True, *, cache: str | os.PathLike[str] | Literal[False] | None = None) -> None:
    """Find the fastest algorithms for convolutions by timing them, once per shape and machine.

    From now on a convolution that meets a shape for the first time is timed with every algorithm that applies, some
    tenths of a second for each of its three products, and keeps the fastest. Without it a cost model chooses. What was
    planned before stays as it is, so that this had better come first. Algorithms round differently; once they are
    chosen, results have the same bits for any number of threads.

    Parameters
    ----------
    on
        Whether shapes that are yet to come are timed.
    cache
        The file of the choices, which are read from it instead of timing again; False: they last as long as the
        process. By default a file named after the CPU in the user's folder for caches, ``~/.cache/deepnet`` on Linux.

    Raises
    ------
    OSError
        The file cannot be written or read.
    ValueError
        The file is none that `autotune` wrote.
    TypeError
        `on` or `cache` is of another type.

    References
    ----------
    Whaley and Dongarra 1998, "Automatically tuned linear algebra software", for timing on the user's machine; FFTW's
    wisdom (Frigo and Johnson 2005, "The design and implementation of FFTW3", sec. IV) for keeping what was found.

    Examples
    --------
    >>> import numpy as np
    >>> import deepnet as dn
    >>> from deepnet import nn
    >>> dn.autotune(cache="choices.json")
    >>> nn.Conv2d(8, 8, 3)(np.ones((2, 8, 9, 9))).shape
    (2, 8, 7, 7)
    >>> dn.autotune(False)
    """
    if not isinstance(on, bool):
        raise TypeError(f"[autotune] expected on to be a bool, got {on!r}")
    if cache is None:
        path = _core.default_autotune_cache() or ""
    elif cache is False:
        path = ""
    elif isinstance(cache, (str, os.PathLike)):
        path = os.path.abspath(cache)
    else:
        raise TypeError(f"[autotune] expected cache to be a path, False or None, got {cache!r}")
    _core.autotune(on, path)


def show_config() -> None:
    """Print the version, compiler, CPU, instruction sets and threads that this build and machine have.

    Examples
    --------
    >>> import deepnet as dn
    >>> dn.show_config()
    deepnet ...
    """
    print(_core.config_text().rstrip())


def cmake_dir() -> str:
    """Tell the folder in which CMake's ``find_package(deepnet CONFIG)`` finds the C++ library.

    Raises
    ------
    RuntimeError
        This installation has no C++ package.

    Examples
    --------
    >>> from pathlib import Path
    >>> import deepnet as dn
    >>> (Path(dn.cmake_dir()) / "deepnetConfig.cmake").is_file()
    True
    """
    from pathlib import Path

    # An editable install has two folders: the sources', and the one of what was built.
    for root in __path__:
        folder = Path(root).resolve() / "lib" / "cmake" / "deepnet"
        if (folder / "deepnetConfig.cmake").is_file():
            return str(folder)
    raise RuntimeError(f"[cmake_dir] no lib/cmake/deepnet/deepnetConfig.cmake in {list(__path__)}")
