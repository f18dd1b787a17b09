"""Initial weights: each function refills, in place, every weight of two or more axes of a layer or network.

Biases stay. Without these a layer starts as PyTorch's does. For a weight of shape (K, C, R, S), or (K, C),
``fan_in = C R S`` and ``fan_out = K R S``. Draws follow :func:`deepnet.manual_seed`.

>>> from deepnet import nn
>>> net = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
>>> nn.init.kaiming_normal(net)
"""

from deepnet._core import Layer
from deepnet._core import init_kaiming_normal as _kaiming_normal
from deepnet._core import init_kaiming_uniform as _kaiming_uniform
from deepnet._core import init_orthogonal as _orthogonal
from deepnet._core import init_xavier_normal as _xavier_normal
from deepnet._core import init_xavier_uniform as _xavier_uniform

__all__ = ["kaiming_normal", "kaiming_uniform", "orthogonal", "xavier_normal", "xavier_uniform"]


def kaiming_normal(net: Layer) -> None:
    """Normal numbers of standard deviation sqrt(2 / fan_in), which keeps the variance of activations through ReLU.

    Parameters
    ----------
    net
        A layer or network; its weights are refilled in place, its biases stay.

    References
    ----------
    He, Zhang, Ren and Sun 2015, "Delving deep into rectifiers", eq. 10.

    Examples
    --------
    >>> from deepnet import nn
    >>> layer = nn.Linear(1000, 50)
    >>> nn.init.kaiming_normal(layer)
    >>> bool(abs(layer.weight.data.std() / (2 / 1000) ** 0.5 - 1) < 0.05)
    True
    """
    _kaiming_normal(net)


def kaiming_uniform(net: Layer) -> None:
    """Uniform numbers in +-sqrt(6 / fan_in), of the same variance as :func:`kaiming_normal`.

    Parameters
    ----------
    net
        A layer or network; its weights are refilled in place, its biases stay.

    References
    ----------
    He, Zhang, Ren and Sun 2015, "Delving deep into rectifiers", eq. 10.

    Examples
    --------
    >>> from deepnet import nn
    >>> layer = nn.Linear(1000, 50)
    >>> nn.init.kaiming_uniform(layer)
    >>> bool(abs(layer.weight.data).max() <= (6 / 1000) ** 0.5)
    True
    """
    _kaiming_uniform(net)


def xavier_normal(net: Layer) -> None:
    """Normal numbers of standard deviation sqrt(2 / (fan_in + fan_out)), a compromise of forward and backward.

    Parameters
    ----------
    net
        A layer or network; its weights are refilled in place, its biases stay.

    References
    ----------
    Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", eq. 12.

    Examples
    --------
    >>> from deepnet import nn
    >>> layer = nn.Linear(1000, 50)
    >>> nn.init.xavier_normal(layer)
    >>> bool(abs(layer.weight.data.std() / (2 / 1050) ** 0.5 - 1) < 0.05)
    True
    """
    _xavier_normal(net)


def xavier_uniform(net: Layer) -> None:
    """Uniform numbers in +-sqrt(6 / (fan_in + fan_out)), of the same variance as :func:`xavier_normal`.

    Parameters
    ----------
    net
        A layer or network; its weights are refilled in place, its biases stay.

    References
    ----------
    Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", eq. 16.

    Examples
    --------
    >>> from deepnet import nn
    >>> layer = nn.Linear(1000, 50)
    >>> nn.init.xavier_uniform(layer)
    >>> bool(abs(layer.weight.data).max() <= (6 / 1050) ** 0.5)
    True
    """
    _xavier_uniform(net)


def orthogonal(net: Layer) -> None:
    """Orthonormal rows or columns, whichever are fewer, of the weight as a matrix (K, C R S).

    Parameters
    ----------
    net
        A layer or network; its weights are refilled in place, its biases stay.

    References
    ----------
    Saxe, McClelland and Ganguli 2014, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks".

    Examples
    --------
    >>> import numpy as np
    >>> from deepnet import nn
    >>> layer = nn.Linear(1000, 50)
    >>> nn.init.orthogonal(layer)
    >>> w = layer.weight.data
    >>> bool(abs(w @ w.T - np.eye(50)).max() < 1e-5)
    True
    """
    _orthogonal(net)
