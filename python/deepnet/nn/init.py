"""Initial weights: each function refills, in place, every weight of two or more axes of a layer or network.

Biases stay. Without these a layer starts as PyTorch's does. For a weight of shape (K, C, R, S), or (K, C),
``fan_in = C R S`` and ``fan_out = K R S``. Draws follow :func:`deepnet.manual_seed`.

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
    """Normal numbers of standard deviation sqrt(2 / fan_in): keeps variance through ReLU (He et al. 2015)."""
    _kaiming_normal(net)


def kaiming_uniform(net: Layer) -> None:
    """Uniform numbers in +-sqrt(6 / fan_in), of the same variance as :func:`kaiming_normal`."""
    _kaiming_uniform(net)


def xavier_normal(net: Layer) -> None:
    """Normal numbers of standard deviation sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 12)."""
    _xavier_normal(net)


def xavier_uniform(net: Layer) -> None:
    """Uniform numbers in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 16)."""
    _xavier_uniform(net)


def orthogonal(net: Layer) -> None:
    """Orthonormal rows or columns, whichever are fewer, of the weight as a matrix (K, C R S) (Saxe et al. 2014)."""
    _orthogonal(net)
