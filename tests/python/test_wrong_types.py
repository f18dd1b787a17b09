"""Arguments of a wrong type are refused in the library's words: who, what was expected, what came."""

import collections
import copy
import pickle

import numpy as np
import pytest

import deepnet as dn
from checks import assert_same_bits
from deepnet import nn, optim

WRONG = {
    "linear: text": (lambda: nn.Linear("a", 3), "[Linear] expected in_features to be an int, got 'a'"),
    "linear: float": (lambda: nn.Linear(3.0, 2), "[Linear] expected in_features to be an int, got 3.0"),
    "linear: by name": (
        lambda: nn.Linear(3, out_features=None),
        "[Linear] expected out_features to be an int, got None",
    ),
    "linear: bias": (lambda: nn.Linear(3, 2, bias="no"), "[Linear] expected bias to be a bool, got 'no'"),
    "linear: array": (
        lambda: nn.Linear(np.zeros((9, 9)), 3),
        "[Linear] expected in_features to be an int, got an array of shape (9, 9)",
    ),
    "linear: missing": (lambda: nn.Linear(3), "[Linear] expected arguments (in_features: int, out_features: int"),
    "linear: unknown": (lambda: nn.Linear(3, 2, biased=1), "got (3, 2, biased=1)"),
    "linear: huge": (
        lambda: nn.Linear(2**70, 2),
        f"[Linear] expected in_features to be an int of 64 bits, got {2**70}",
    ),
    "conv: channels": (lambda: nn.Conv2d("1", 2, 3), "[Conv2d] expected in_channels to be an int, got '1'"),
    "dropout": (lambda: nn.Dropout("half"), "[Dropout] expected p to be a float, got 'half'"),
    "lstm": (lambda: nn.LSTM(3, 4.5), "[LSTM] expected hidden_size to be an int, got 4.5"),
    "rnn: nonlinearity": (lambda: nn.RNN(3, 4, nonlinearity=7), "[RNN] expected nonlinearity to be a str, got 7"),
    "relu: any": (lambda: nn.ReLU(1), "[ReLU] expected arguments (), got (1)"),
    "loss": (lambda: nn.CrossEntropyLoss(axis="last"), "[CrossEntropyLoss] expected axis to be an int, got 'last'"),
    "sgd": (lambda: optim.SGD("0.1"), "[SGD] expected lr to be a number, got '0.1'"),
    "sgd: parameters": (
        lambda: optim.SGD(nn.Linear(1, 1).parameters()),
        "[SGD] expected lr to be a number, got a dict: an optimizer",
    ),
    "adam: a list of parameters": (
        lambda: optim.Adam([*nn.Linear(1, 1).parameters().values()]),
        "got a list: an optimizer",
    ),
    "rmsprop: a generator": (
        lambda: optim.RMSprop(p for p in nn.Linear(1, 1).parameters()),
        "got a generator: an optimizer",
    ),
    "sgd: attribute": (lambda: setattr(optim.SGD(0.1), "lr", "1"), "[SGD] expected lr to be a number"),
    "threads": (lambda: dn.set_num_threads(1.5), "[set_num_threads] expected n to be an int, got 1.5"),
    "with threads": (lambda: dn.threads("two"), "[threads] expected n to be an int, got 'two'"),
    "seed": (lambda: dn.manual_seed(-1), "[manual_seed] expected n to be an integer, 0 <= n < 2**64, got -1"),
    "trainer": (lambda: dn.Trainer(1, 2, 3), "[Trainer] expected arguments (net: Layer, loss: Loss, optimizer"),
    "train": (lambda: nn.ReLU().train("yes"), "expected mode to be a bool, got 'yes'"),
    "predict: batch_size": (
        lambda: nn.ReLU().predict(np.ones((2, 2)), batch_size=2**70),
        f"expected batch_size to be an int of 64 bits, got {2**70}",
    ),
    "predict: half a row": (
        lambda: nn.ReLU().predict(np.ones((2, 2)), batch_size=0.5),
        "[predict] expected batch_size to be an int, got 0.5",
    ),
    "predict: a bool": (lambda: nn.ReLU().predict(np.ones((2, 2)), True), "batch_size to be an int, got True"),
    "conv: wide stride": (
        lambda: nn.Conv2d(1, 1, 3, stride=(1, 2**70)),
        f"[Conv2d] expected stride to be an int or a pair of ints of 64 bits, got (1, {2**70})",
    ),
    "state": (lambda: nn.Linear(1, 1).load_state_dict([1]), "[Linear.load_state_dict] expected a mapping"),
    "copy": (lambda: copy.deepcopy(nn.Linear(1, 1)), "[Linear] layers can be neither copied nor pickled"),
    "pickle": (lambda: pickle.dumps(nn.Sequential()), "[Sequential] layers can be neither copied nor pickled"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_types_are_refused_in_words(name):
    attempt, text = WRONG[name]
    with pytest.raises(TypeError) as info:
        attempt()
    assert text in str(info.value)
    assert "Invoked" not in str(info.value)
    assert "incompatible" not in str(info.value)


def test_numpy_numbers_are_numbers():
    layer = nn.Linear(np.int64(3), np.int32(2))
    assert (layer.in_features, layer.out_features) == (3, 2)
    assert optim.SGD(np.float32(0.5)).lr == 0.5
    assert optim.SGD(1).lr == 1.0


def test_any_mapping_is_a_state(rng):
    source, layer = nn.Linear(3, 2), nn.Linear(3, 2)
    layer.load_state_dict(collections.UserDict(source.state_dict()))
    assert_same_bits(layer.weight.data, source.weight.data)


def test_methods_that_would_not_be_called_are_refused():
    for native in (nn.Linear, nn.Sequential, nn.ReLU, nn.LSTM):
        for method in ("forward", "backward"):
            with pytest.raises(
                TypeError, match=rf"\[Mine\] expected no method {method} .* {native.__name__}.*nn\.Layer"
            ):
                type("Mine", (native,), {method: lambda self, x: x})
    with pytest.raises(TypeError, match=r"\[Mine\] expected no method step .* SGD"):
        type("Mine", (optim.SGD,), {"step": lambda self, net: None})
    for method in ("__call__", "backward"):
        with pytest.raises(TypeError, match=rf"\[Mine\] expected no method {method} .* MSELoss"):
            type("Mine", (nn.MSELoss,), {method: lambda self, *args: 0.0})

    class Named(nn.Linear):
        def shape(self):
            return self.weight.shape

    class Mixin:
        def __init_subclass__(cls, tag="", **rest):
            super().__init_subclass__(**rest)
            cls.tag = tag

    class Own(nn.Layer, Mixin, tag="mine"):
        def forward(self, x):
            return x

    class Further(Own):
        def backward(self, dy):
            return dy

    assert Named(3, 2).shape() == (2, 3)
    assert Own.tag == "mine"
    assert Further().backward(1) == 1
