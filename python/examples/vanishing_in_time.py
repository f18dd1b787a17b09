"""The vanishing gradient in time: a tanh RNN, an LSTM and a GRU on the adding problem, 400 steps long.

The error that a state hands to the one before it is dE/dh(t-1) = W^T (f'(a(t)) dE/dh(t)), with the same W at every
step: in a plain RNN it shrinks (or grows) by about the same factor each time, T times (Hochreiter 1991; Bengio et al.
1994). An LSTM's cell hands on f(t) dE/dc(t), a GRU's state z(t) dE/dh(t) and more: where these gates are open, at 1,
nothing is lost. Biases decide how open they are before training; see open_gates() in long_memory.py.

    python vanishing_in_time.py [--steps T] [--short T] [--batches N] [--output FILE.png]

prints |dE/dh(t)| over T = 400 steps before training, trains all on N batches of fresh sequences of 100 steps and the
RNN on 400, too, and draws both. Needs matplotlib.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from long_memory import BATCH, TASKS, adding, open_gates

import deepnet as dn
from deepnet import nn, optim

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FIGURE = Path(__file__).parent / "figures" / "vanishing_in_time.png"
HIDDEN, RATES = TASKS["adding"].hidden, TASKS["adding"].rates
EVERY = 250  # batches from one test to the next


def network(kind, steps, gates_open=True):
    """A recurrent layer of 32 units, and a linear one on its last state."""
    dn.manual_seed(0)
    layer = getattr(nn, kind)(2, HIDDEN, return_sequences=False)
    if gates_open:
        open_gates(layer, steps, np.random.default_rng(0))
    return nn.Sequential(layer, nn.Linear(HIDDEN, 1))


def state_gradients(net, x, y):
    """|dE/dh(t)| at each step t, by one forward and one backward."""
    loss = nn.MSELoss()
    loss(net(x), y)
    net.zero_grad()
    net.backward(loss.backward())
    (recurrent, _) = net.children()
    return recurrent.state_gradient_norms[0]


def train(net, lr, steps, batches):
    """The squared error on a thousand other sequences, at the start and after every 250 batches."""
    random = np.random.default_rng(1)
    x_test, y_test = adding(1000, steps, random)
    trainer = dn.Trainer(net, nn.MSELoss(), optim.SGD(lr, momentum=0.9))
    errors = [np.mean((net.predict(x_test) - y_test) ** 2)]
    for batch in range(1, batches + 1):
        trainer.step(*adding(BATCH, steps, random))
        if batch % EVERY == 0:
            errors.append(np.mean((net.predict(x_test) - y_test) ** 2))
    return errors


def style(name, colours):
    kind, *more = name.split(", ")
    return {"label": name, "color": colours[kind], "linestyle": ":" if more else "-"}


def draw(norms, errors, path):
    """Colours tell the layers apart, dots that gates start half open or that sequences are the long ones."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    colours = {name: f"C{i}" for i, name in enumerate(RATES)}
    for name, values in norms.items():
        visible = np.where(values > 0, values, np.nan)  # what is too small for float32 is 0 and has no logarithm
        left.semilogy(range(1, len(values) + 1), visible, **style(name, colours))
    for name, values in errors.items():
        right.plot(EVERY * np.arange(len(values)), values, **style(name, colours))
    left.set(xlabel="step t", ylabel="|dE/dh(t)| at the start")
    right.set(xlabel="batches", ylabel="squared error", ylim=(0, 0.25))
    left.legend(fontsize="small")
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--short", type=int, default=100)
    parser.add_argument("--batches", type=int, default=8000)
    parser.add_argument("--output", type=Path, default=FIGURE)
    options = parser.parse_args()

    x, y = adding(BATCH, options.steps, np.random.default_rng(0))
    norms = {name: state_gradients(network(name, options.steps), x, y) for name in RATES}
    for name in ("LSTM", "GRU"):
        norms[f"{name}, gates half open"] = state_gradients(network(name, options.steps, gates_open=False), x, y)
    shown = sorted({1, *range(100, options.steps, 100), options.steps})
    print("|dE/dh(t)| at the start, t =" + "".join(f"{step:>9}" for step in shown))
    for name, values in norms.items():
        print(f"{name:27}" + "".join(f"{values[step - 1]:9.1e}" for step in shown))

    errors = {}
    for name, steps in [(name, options.short) for name in RATES] + [("RNN", options.steps)]:
        title = name if steps == options.short else f"{name}, T = {steps}"
        errors[title] = train(network(name, steps), RATES[name], steps, options.batches)
        print(
            f"{name:5} T = {steps:<4} squared error after {options.batches} batches of {BATCH}: {errors[title][-1]:.4f}"
        )
    draw(norms, errors, options.output)
    print(f"drawn to {options.output}")


if __name__ == "__main__":
    main()
