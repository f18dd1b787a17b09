"""Layers, losses and initial weights.

A layer knows nothing of its neighbours: given its input it makes its output; given dE/dOutput it makes
dE/dInput for the layer below and adds dE/dW to its own parameters' gradients.

>>> import numpy as np
>>> from deepnet import nn
>>> first, second = nn.Linear(4, 24), nn.ReLU()
>>> y = second(first(np.zeros((8, 4))))
>>> dx = first.backward(second.backward(np.ones_like(y)))
"""

from deepnet import _fit
from deepnet._core import (
    ELU,
    GELU,
    GRU,
    LSTM,
    RNN,
    AvgPool2d,
    BCEWithLogitsLoss,
    Conv2d,
    CrossEntropyLoss,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    GRUCell,
    Layer,
    LeakyReLU,
    Linear,
    LogSoftmax,
    Loss,
    LSTMCell,
    MaxPool2d,
    MSELoss,
    NLLLoss,
    Recurrent,
    ReLU,
    RNNCell,
    Sequential,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from deepnet.nn import init

__all__ = [
    "ELU",
    "GELU",
    "GRU",
    "LSTM",
    "RNN",
    "AvgPool2d",
    "BCEWithLogitsLoss",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "GRUCell",
    "GlobalAvgPool2d",
    "LSTMCell",
    "Layer",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "Loss",
    "MSELoss",
    "MaxPool2d",
    "NLLLoss",
    "RNNCell",
    "ReLU",
    "Recurrent",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "init",
]

# The training methods are Python; every layer, native or not, has them.
_fit.attach(Layer)
