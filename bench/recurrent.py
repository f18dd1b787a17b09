"""Speed of recurrent layers, training steps and single steps, against PyTorch: see README.md beside this file.

$ python bench/recurrent.py
$ python bench/recurrent.py --only gru step-gru --repeats 41
"""

from __future__ import annotations

import argparse
from statistics import median, quantiles
from typing import NamedTuple

import numpy as np
import torch
from agreement import TOLERANCE, require_close
from timing import Step, cpu_name, format_seconds, interleave

import deepnet
from deepnet import nn, optim

try:
    from jax_twin import jax_rnn_step
except ImportError:
    jax_rnn_step = None

LR = 0.01
OURS, THEIRS, JAX = "deepnet", "PyTorch", "JAX"


class Work(NamedTuple):
    """A stack of recurrent layers and its input, N sequences of T steps of F features; T = 0: one step at a time."""

    kind: str
    batch: int
    steps: int
    features: int
    hidden: int
    layers: int = 1

    def __str__(self) -> str:
        """As a row of the table begins."""
        shape = f"{self.batch}x{self.steps}x{self.features}" if self.steps else f"{self.batch}x{self.features}, a step"
        return f"{self.kind}{f', {self.layers} layers' if self.layers > 1 else ''} | {shape} | {self.hidden}"


WORKS = {
    "rnn": Work("RNN", 32, 100, 64, 128),
    "lstm": Work("LSTM", 32, 100, 64, 128),
    "gru": Work("GRU", 32, 100, 64, 128),
    "rnn-one": Work("RNN", 1, 200, 16, 32),
    "lstm-one": Work("LSTM", 1, 200, 16, 32),
    "gru-one": Work("GRU", 1, 200, 16, 32),
    "lstm-two-layers": Work("LSTM", 64, 50, 128, 256, layers=2),
    "step-rnn": Work("RNN", 1, 0, 64, 128),
    "step-lstm": Work("LSTM", 1, 0, 64, 128),
    "step-gru": Work("GRU", 1, 0, 64, 128),
}


def main() -> None:
    """Print a table of times and ratios, in Markdown."""
    options = _parser().parse_args()
    torch.set_flush_denormal(True)  # as deepnet always does; before the first thread, which inherits it
    torch.set_num_threads(options.threads)
    deepnet.set_num_threads(options.threads)
    print(f"{cpu_name()}, threads: {options.threads}, rounds: {options.repeats}")
    print(f"deepnet {deepnet.__version__} ({deepnet.active_isa()}), PyTorch {torch.__version__}\n")
    print(f"| layer | input | hidden | {OURS} | {THEIRS} | {THEIRS} / {OURS} | quartiles | {JAX} |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for name in options.only or WORKS:
        work = WORKS[name]
        torch.manual_seed(0)
        steps = _training_steps(work) if work.steps else _single_steps(work)
        with torch.inference_mode(mode=not work.steps):
            print(_row(work, interleave(steps, options.repeats)), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of either library (default: 2)")
    parser.add_argument("--repeats", type=int, default=21, help="rounds, each a block of every program (default: 21)")
    parser.add_argument("--only", nargs="+", choices=WORKS, metavar="NAME", help=", ".join(map(repr, WORKS)))
    return parser


def _row(work: Work, times: dict[str, list[float]]) -> str:
    ours, theirs = median(times[OURS]), median(times[THEIRS])
    low, _, high = quantiles((b / a for a, b in zip(times[OURS], times[THEIRS], strict=True)), method="inclusive")
    cells = [f"| {work}", format_seconds(ours), format_seconds(theirs), f"**{theirs / ours:.2f}**"]
    jax = format_seconds(median(times[JAX])) if JAX in times else ""
    return " | ".join([*cells, f"{low:.2f} to {high:.2f}", f"{jax} |"])


def _training_steps(work: Work) -> dict[str, Step]:
    """One SGD step on the mean squared error of the whole output, of either library, after a check that they agree."""
    net = nn.Sequential(getattr(nn, work.kind)(work.features, work.hidden, num_layers=work.layers))
    twin = getattr(torch.nn, work.kind)(work.features, work.hidden, work.layers, batch_first=True)
    net.load_state_dict({f"0.{name}": value.numpy() for name, value in twin.state_dict().items()})
    random = np.random.default_rng(0)
    x = random.standard_normal((work.batch, work.steps, work.features), dtype=np.float32)
    target = random.standard_normal((work.batch, work.steps, work.hidden), dtype=np.float32)
    x_t, target_t = torch.from_numpy(x), torch.from_numpy(target)
    trainer = deepnet.Trainer(net, nn.MSELoss(), optim.SGD(LR))
    loss_of, optimizer = torch.nn.MSELoss(), torch.optim.SGD(twin.parameters(), LR)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(twin(x_t)[0], target_t)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    steps: dict[str, Step] = {OURS: lambda: trainer.step(x, target), THEIRS: step}
    if jax_rnn_step is not None and work.kind == "RNN" and work.layers == 1:
        steps[JAX] = jax_rnn_step(net[0], x, target, LR)
        require_close("JAX's loss", steps[JAX](), float(loss_of(twin(x_t)[0], target_t).detach()), TOLERANCE)
    before = net.state_dict()
    require_close("loss", trainer.step(x, target), step(), TOLERANCE)
    after = {f"0.{name}": value.numpy() for name, value in twin.state_dict().items()}
    for name, value in net.state_dict().items():
        require_close(f"change of {name}", value - before[name], after[name] - before[name], TOLERANCE)
    return steps


def _single_steps(work: Work) -> dict[str, Step]:
    """`layer.step` against PyTorch's cell in inference mode, each carrying its state."""
    layer = getattr(nn, work.kind)(work.features, work.hidden)
    cell = getattr(torch.nn, f"{work.kind}Cell")(work.features, work.hidden)
    layer.load_state_dict({f"{name}_l0": value.numpy() for name, value in cell.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((work.batch, work.features), dtype=np.float32)
    x_t = torch.from_numpy(x)
    state: list[object] = [None]

    def step() -> torch.Tensor:
        state[0] = cell(x_t, state[0])
        output: torch.Tensor = state[0][0] if work.kind == "LSTM" else state[0]  # type: ignore[index, assignment]
        return output

    with torch.inference_mode():
        for _ in range(3):
            require_close("step", layer.step(x), step().numpy(), TOLERANCE)
    return {OURS: lambda: layer.step(x), THEIRS: step}


if __name__ == "__main__":
    main()
