"""Accuracy of ``deepnet train fashion-mnist --model lenet`` against the same training in PyTorch.

Both take network, epochs, batch size, learning rate, momentum, weight decay and schedule from the command line's
recipe; each draws its own initial weights and order. Exit status 1: the means differ by more than half a point.

$ python bench/accuracy.py
"""

from __future__ import annotations

import argparse
import sys
import time
from statistics import mean, stdev

import torch
from twin import torch_twin

import deepnet
from deepnet import _models, callbacks, data, nn, optim

MODEL, CLASSES = "lenet", len(data.FASHION_CLASSES)
MOMENTUM = 0.9  # the command line's
ALLOWED = 0.5  # points


def main() -> int:
    """Train and test with each seed in both libraries; print the means and how far apart they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of either library (default: 3)")
    parser.add_argument("--epochs", type=int, default=_models.RECIPES[MODEL].epochs, help="(default: the recipe's)")
    parser.add_argument("--threads", type=int, default=2, help="of either library (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    deepnet.set_num_threads(options.threads)

    train, test = data.fashion_mnist()
    accuracies: dict[str, list[float]] = {"deepnet": [], "PyTorch": []}
    for seed in range(options.seeds):
        for who, run in (("deepnet", train_deepnet), ("PyTorch", train_torch)):
            begin = time.perf_counter()
            accuracies[who].append(100.0 * run(train, test, options.epochs, seed))
            seconds = time.perf_counter() - begin
            print(f"seed {seed}  {who:8} {accuracies[who][-1]:6.2f} %  {seconds:6.1f} s", flush=True)
    print()
    for who, values in accuracies.items():
        spread = f", standard deviation {stdev(values):.2f}" if len(values) > 1 else ""
        print(f"{who:8} mean {mean(values):.2f} %{spread}")
    difference = mean(accuracies["deepnet"]) - mean(accuracies["PyTorch"])
    verdict = "agree" if abs(difference) <= ALLOWED else "DISAGREE"
    print(f"difference {difference:+.2f} points: they {verdict} (allowed: {ALLOWED})")
    return 0 if abs(difference) <= ALLOWED else 1


def train_deepnet(train: data.Split, test: data.Split, epochs: int, seed: int) -> float:
    """As the command line does; returns the share of test images that are classified rightly."""
    recipe = _models.RECIPES[MODEL]
    deepnet.manual_seed(seed)
    net = recipe.build(train[0].shape[1:], CLASSES)
    net.fit(
        *train,
        loss=nn.CrossEntropyLoss(),
        optimizer=optim.SGD(recipe.lr, momentum=MOMENTUM, weight_decay=recipe.weight_decay),
        epochs=epochs,
        batch_size=recipe.batch_size,
        seed=seed,
        callbacks=callbacks.cosine_decay(epochs),
        progress=False,
    )
    return net.evaluate(*test)["accuracy"]


def train_torch(train: data.Split, test: data.Split, epochs: int, seed: int) -> float:
    """The same, with PyTorch's own initial weights, optimizer and schedule."""
    recipe = _models.RECIPES[MODEL]
    torch.manual_seed(seed)
    (x, y), (x_test, y_test) = (tuple(map(torch.from_numpy, split)) for split in (train, test))
    net = torch_twin(recipe.build(train[0].shape[1:], CLASSES))
    loss_of = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), recipe.lr, momentum=MOMENTUM, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(recipe.batch_size):
            optimizer.zero_grad()
            loss_of(net(x[rows]), y[rows]).backward()
            optimizer.step()
        schedule.step()
    net.eval()
    with torch.inference_mode():
        predicted = torch.cat([net(images).argmax(dim=1) for images in x_test.split(256)])
    return float((predicted == y_test).float().mean())


if __name__ == "__main__":
    sys.exit(main())
