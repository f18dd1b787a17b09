"""Bits per character of ``deepnet train TEXT`` against the same training in PyTorch.

Both read the same batches of the same text from the same initial weights, with the command line's recipe for a
character model: network, length, rate, momentum and schedule. They differ in rounding alone, which training amplifies.
Exit status 1: held-out bits per character, averaged over the seeds, differ by more than 2 %.

The text, unless --text names another: the topics of Python's own help (pydoc_data.topics, part of every CPython;
Python Software Foundation, PSF License Version 2), about 460,000 characters.

$ python bench/characters.py
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

import torch

import deepnet
from deepnet import _text_job, data, nn

MODEL = "charlstm"
ALLOWED = 0.02


def main() -> int:
    """Train and test with each seed in both libraries; print the means and how far apart they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, metavar="FILE", help="a text in UTF-8")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="runs of either library (default: 2)")
    parser.add_argument("--epochs", type=int, metavar="N", help="(default: the command line's)")
    parser.add_argument("--threads", type=int, default=2, help="of either library (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    deepnet.set_num_threads(options.threads)
    torch.set_flush_denormal(True)

    text = python_help() if options.text is None else data.text(options.text)
    bits: dict[str, list[float]] = {"deepnet": [], "PyTorch": []}
    for seed in range(options.seeds):
        deepnet.manual_seed(seed)
        job = _text_job.Training(text, MODEL, options.epochs)
        twin = Twin(job.net)  # made before training: the weights that both begin with
        for who in bits:
            begin = time.perf_counter()
            if who == "deepnet":
                job.run(progress=False)
            else:
                train_torch(job, twin)
            seconds = time.perf_counter() - begin
            bits[who].append(_text_job.bits_per_character(job.net, job.test) if who == "deepnet" else test(job, twin))
            steps = job.epochs * len(job.batches)
            print(f"seed {seed}  {who:8} {bits[who][-1]:.4f} bits  {steps} steps  {seconds:6.1f} s", flush=True)
    means = {who: mean(values) for who, values in bits.items()}
    difference = means["deepnet"] / means["PyTorch"] - 1.0
    verdict = "agree" if abs(difference) <= ALLOWED else "DISAGREE"
    print(f"\nmeans {means['deepnet']:.4f} and {means['PyTorch']:.4f}")
    print(f"difference {difference:+.2%}: they {verdict} (allowed: {ALLOWED:.0%})")
    return 0 if abs(difference) <= ALLOWED else 1


def python_help() -> data.Text:
    """The topics in alphabetical order."""
    from pydoc_data.topics import topics

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "topics.txt"
        path.write_text("\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")
        return data.text(path)


class Twin(torch.nn.Module):
    """An LSTM and a linear layer, with the weights of ours."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        state = net.state_dict()
        characters, hidden = state["0.weight_ih_l0"].shape[1], state["0.weight_hh_l0"].shape[1]
        self.layers = torch.nn.ModuleList(
            [torch.nn.LSTM(characters, hidden, batch_first=True), torch.nn.Linear(hidden, characters)]
        )
        self.layers.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})

    def forward(self, x: torch.Tensor, state: object = None) -> tuple[torch.Tensor, object]:
        y, state = self.layers[0](x, state)
        return self.layers[1](y), state


def train_torch(job: _text_job.Training, twin: Twin) -> None:
    """The same: the state goes from batch to batch, its gradient does not."""
    optimizer = torch.optim.SGD(twin.parameters(), job.lr, momentum=_text_job.MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=job.epochs)
    for _ in range(job.epochs):
        state = None
        for x, y in job.batches:
            optimizer.zero_grad()
            logits, state = twin(torch.from_numpy(x), state)
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(y).flatten()).backward()
            optimizer.step()
            state = tuple(part.detach() for part in state)
        schedule.step()


def test(job: _text_job.Training, twin: Twin) -> float:
    """Bits per character of the held-out text, read in one go."""
    ((x, y),) = job.test.batches(1, len(job.test))
    with torch.inference_mode():
        logits, _ = twin(torch.from_numpy(x))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(y).flatten())
    return float(loss) / math.log(2.0)


if __name__ == "__main__":
    sys.exit(main())
