"""Three tests of long memory: what must be kept for T steps is worth nothing until it is kept for all of them.

adding          Two of T numbers are marked; the answer is their sum (Hochreiter and Schmidhuber 1997, section 5.4, with
                numbers from 0 to 1 as in Arjovsky et al. 2016). Answering 1 always gives a squared error of 1/6.
temporal order  Two of T letters are X or Y, the others noise; the answer tells which two, in order: 4 classes
                (Hochreiter and Schmidhuber 1997, section 5.6, task 6a). Guessing gives 25 %.
copy memory     Ten letters, then T blanks, then a call to repeat them (Arjovsky et al. 2016, the copying memory
                problem). Guessing the letters gives 12.5 %.

A gated layer forgets by h -> f h, and an untrained gate is half open, f = 1/2: after T steps 2^-T is left, of the
memory as of the error on its way back. So the gates start nearly open, for spans from 1 to T steps; see open_gates().

    python long_memory.py [--tasks adding order copy] [--layers RNN LSTM GRU] [--steps T] [--batches N]

All by SGD with momentum on fresh sequences, batch after batch.
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import deepnet as dn
from deepnet import nn, optim

BATCH, TESTS = 32, 1000
LETTERS, WORD = 8, 10  # of copy memory


def adding(n, steps, random):
    """x (N, T, 2): a number and a mark, 0 or 1; y (N, 1): the sum of the two numbers that are marked."""
    rows, half = np.arange(n), steps // 2
    values, marks = random.random((n, steps), dtype=np.float32), np.zeros((n, steps), np.float32)
    first, second = random.integers(0, half, n), random.integers(half, steps, n)
    marks[rows, first] = marks[rows, second] = 1
    return np.stack([values, marks], axis=2), (values[rows, first] + values[rows, second])[:, None]


def temporal_order(n, steps, random):
    """x (N, T, 8): one-hot letters, noise a to d, X and Y, a start and an end; y (N,): XX, XY, YX or YY as 0 to 3."""
    rows, letters = np.arange(n), random.integers(0, 4, (n, steps))
    pair = random.integers(0, 2, (2, n))
    letters[rows, random.integers(steps // 10, steps // 5, n)] = 4 + pair[0]
    letters[rows, random.integers(steps // 2, 3 * steps // 5, n)] = 4 + pair[1]
    letters[:, 0], letters[:, -1] = 6, 7
    return np.eye(8, dtype=np.float32)[letters], 2 * pair[0] + pair[1]


def copy_memory(n, steps, random):
    """x (N, T + 20, 10): one-hot blanks, 8 letters and a call; y (N, T + 20): blanks (0), then the ten letters."""
    word = random.integers(1, LETTERS + 1, (n, WORD))
    letters, labels = np.zeros((2, n, steps + 2 * WORD), np.int64)
    letters[:, :WORD] = labels[:, -WORD:] = word
    letters[:, steps + WORD - 1] = LETTERS + 1
    return np.eye(LETTERS + 2, dtype=np.float32)[letters], labels


def open_gates(layer, steps, random):
    """Biases that let a state last for spans from 1 to T steps (Tallec and Ollivier 2018, "chrono initialization").

    A gate f keeps a state for about 1 / (1 - f) steps, so that b_f = log(span - 1), and b_i = -b_f lets as little in.
    """
    if isinstance(layer, nn.RNN):
        return  # has no gates
    spans = np.log(random.uniform(1, steps - 1, layer.hidden_size))
    biases = layer.parameters()
    biases["bias_hh_l0"].data[:] = 0
    gates = biases["bias_ih_l0"].data.reshape(-1, layer.hidden_size)  # LSTM: i, f, g, o; GRU: r, z, n
    gates[:] = 0
    gates[1] = spans
    if isinstance(layer, nn.LSTM):
        gates[0] = -spans


class Task(NamedTuple):
    """What is to be learned, by a layer of how many units at what rate, and when it is."""

    sequences: Callable  # (N, T, random generator) -> x, y
    steps: int  # T where none is asked for
    features: int
    hidden: int
    outputs: int
    loss: nn.Loss
    rates: dict  # by layer; at higher ones the gradients of some explode
    every_step: bool = False  # answers at every step, not at the last one alone

    def score_name(self):
        return "squared error" if isinstance(self.loss, nn.MSELoss) else "accuracy"

    def solved(self, score):
        return score < 0.01 if isinstance(self.loss, nn.MSELoss) else score >= 0.99


TASKS = {
    "adding": Task(
        adding,
        steps=100,
        features=2,
        hidden=32,
        outputs=1,
        loss=nn.MSELoss(),
        rates={"RNN": 0.01, "LSTM": 0.3, "GRU": 0.3},
    ),
    "order": Task(
        temporal_order,
        steps=100,
        features=8,
        hidden=32,
        outputs=4,
        loss=nn.CrossEntropyLoss(),
        rates={"RNN": 0.01, "LSTM": 0.2, "GRU": 0.2},
    ),
    "copy": Task(
        copy_memory,
        steps=20,
        features=LETTERS + 2,
        hidden=128,
        outputs=LETTERS + 1,
        loss=nn.CrossEntropyLoss(axis=-1),
        rates={"RNN": 0.1, "LSTM": 1.0, "GRU": 0.5},
        every_step=True,
    ),
}


def network(task, kind, steps, random):
    """A recurrent layer, and a linear one on its last state or on all."""
    layer = getattr(nn, kind)(task.features, task.hidden, return_sequences=task.every_step)
    open_gates(layer, steps, random)
    return nn.Sequential(layer, nn.Linear(task.hidden, task.outputs))


def score(task, net, x, y):
    answers = net.predict(x)
    if task.every_step:
        answers, y = answers[:, -WORD:], y[:, -WORD:]
    if isinstance(task.loss, nn.MSELoss):
        return float(np.mean((answers - y) ** 2))
    return float(np.mean(answers.argmax(axis=-1) == y))


def learn(name, kind, steps, batches, seed):
    """Train until the task is solved or the batches are used up; returns their number and the last score."""
    task, random = TASKS[name], np.random.default_rng(seed)
    dn.manual_seed(seed)
    net = network(task, kind, steps, random)
    trainer = dn.Trainer(net, task.loss, optim.SGD(task.rates[kind], momentum=0.9))
    x_test, y_test = task.sequences(TESTS, steps, random)
    for batch in range(1, batches + 1):
        trainer.step(*task.sequences(BATCH, steps, random))
        if batch % 250 == 0 or batch == batches:
            result = score(task, net, x_test, y_test)
            if task.solved(result):
                break
    return batch, result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--layers", nargs="+", choices=("RNN", "LSTM", "GRU"), default=("RNN", "LSTM", "GRU"))
    parser.add_argument("--steps", type=int, help="T (default: 100; 20 for copy memory)")
    parser.add_argument("--batches", type=int, default=10_000, help=f"of {BATCH} sequences, at most (default: 10,000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    for name in options.tasks:
        task = TASKS[name]
        steps = options.steps or task.steps
        for kind in options.layers:
            begin = time.perf_counter()
            batches, result = learn(name, kind, steps, options.batches, options.seed)
            verdict = "solved" if task.solved(result) else "not solved"
            seconds = time.perf_counter() - begin
            print(f"{name:7} T = {steps:<4} {kind:5} {task.score_name()} {result:.4f}, {verdict} ", end="")
            print(f"after {batches:,} batches of {BATCH}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
