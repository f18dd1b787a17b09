"""The vanishing gradient: eight hidden layers of sigmoid, ReLU and softplus on the digits, side by side.

The error at a layer's input is W^T f'(a) dE/dy. A sigmoid's slope f' is at most 1/4, so that every layer of sigmoids
shrinks the error on its way down, and the first layers hardly learn (Hochreiter 1991; Bengio et al. 1994). The slope of
ReLU is 1 wherever it is active, that of softplus, log(1 + e^a), is the sigmoid itself, between 1/2 and 1 for a > 0.

    python vanishing_gradient.py [--epochs N] [--output FILE.png]

prints the norm of dE/dW of each layer before training and the loss of each epoch, and draws both. Needs matplotlib.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np

import deepnet as dn
from deepnet import nn, optim

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "ReLU": nn.ReLU, "softplus": nn.Softplus}
FIGURE = Path(__file__).parent / "figures" / "vanishing_gradient.png"


def deep_network(activation, hidden=8, width=32):
    """64 pixels, `hidden` layers of `width` units, 10 classes; the same initial weights whatever the activation."""
    dn.manual_seed(0)
    sizes = [64] + [width] * hidden
    layers = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    net = nn.Sequential(*layers, nn.Linear(width, 10))
    nn.init.kaiming_normal(net)
    return net


def gradient_norms(net, x, labels):
    """The norm of dE/dW for each layer's weights, from the input up, by one forward and one backward."""
    loss = nn.CrossEntropyLoss()
    loss(net(x), labels)
    net.zero_grad()
    net.backward(loss.backward())
    return [float(np.linalg.norm(p.grad)) for name, p in net.parameters().items() if name.endswith("weight")]


def compare(epochs):
    """Gradient norms at the start, and the loss of each epoch, by name of the activation."""
    (x, labels), _ = dn.data.digits()
    norms, losses = {}, {}
    for name, activation in ACTIVATIONS.items():
        net = deep_network(activation)
        norms[name] = gradient_norms(net, x, labels)
        sgd = optim.SGD(lr=0.02, momentum=0.9)
        losses[name] = net.fit(x, labels, optimizer=sgd, epochs=epochs, progress=False)["loss"]
    return norms, losses


def draw(norms, losses, path):
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for name in ACTIVATIONS:
        left.semilogy(range(1, len(norms[name]) + 1), norms[name], "o-", markersize=4, label=name)
        right.plot(range(1, len(losses[name]) + 1), losses[name], label=name)
    left.set(xlabel="layer (1 is next to the input)", ylabel="norm of dE/dW at the start")
    right.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    left.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--output", type=Path, default=FIGURE)
    options = parser.parse_args()

    norms, losses = compare(options.epochs)
    print("norm of dE/dW at the start\nlayer     " + "".join(f"{name:>10}" for name in ACTIVATIONS))
    for layer, row in enumerate(zip(*norms.values(), strict=True), start=1):
        print(f"{layer:<10}" + "".join(f"{norm:10.1e}" for norm in row))
    print(f"loss\nepoch 1   {''.join(f'{loss[0]:10.3f}' for loss in losses.values())}")
    print(f"{f'epoch {options.epochs}':<10}" + "".join(f"{loss[-1]:10.3f}" for loss in losses.values()))
    draw(norms, losses, options.output)
    print(f"drawn to {options.output}")


if __name__ == "__main__":
    main()
