"""Speed of a training step, or of inference, against PyTorch's eager mode: see README.md beside this file.

$ python bench/compare.py
$ python bench/compare.py --inference --only lenet vgg-small
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from agreement import CHANGE_TOLERANCE, CHECKED_STEPS, TOLERANCE, require_close
from networks import WORKS
from numpy.typing import NDArray
from timing import Step, cpu_name, format_seconds, interleave
from twin import torch_twin

import deepnet
from deepnet import nn, optim

LR, MOMENTUM = 0.01, 0.9
OURS, NCHW, CHANNELS_LAST = "deepnet", "PyTorch NCHW", "PyTorch channels_last"


def main() -> None:
    """Print a table of times and ratios, in Markdown."""
    options = _parser().parse_args()
    # PyTorch computes with subnormal numbers unless told not to, which would slow it down as gradients fade. Threads
    # inherit this, so it comes before the first of them.
    torch.set_flush_denormal(True)
    torch.set_num_threads(options.threads)
    deepnet.set_num_threads(options.threads)
    what = "Inference" if options.inference else "Training step"
    print(f"{what}, {cpu_name()}, threads: {options.threads}, rounds: {options.repeats}")
    print(f"deepnet {deepnet.__version__} ({deepnet.active_isa()}), PyTorch {torch.__version__}\n")
    print(f"| network | input | {OURS} | {NCHW} | {CHANNELS_LAST} | best PyTorch / {OURS} | quartiles |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for name in options.only or WORKS:
        print(_row(name, _measure(name, options), WORKS[name].shape), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of either library (default: 2)")
    parser.add_argument("--repeats", type=int, default=21, help="rounds, each a block of every program (default: 21)")
    parser.add_argument("--only", nargs="+", choices=WORKS, metavar="NAME", help=", ".join(map(repr, WORKS)))
    parser.add_argument("--inference", action="store_true", help="time inference instead of training steps")
    parser.add_argument("--fused", action="store_true", help="PyTorch's fused SGD instead of its default")
    return parser


def _row(name: str, times: dict[str, list[float]], shape: tuple[int, ...]) -> str:
    medians = {who: median(values) for who, values in times.items()}
    best = min((who for who in times if who != OURS), key=medians.__getitem__)
    low, _, high = quantiles((b / a for a, b in zip(times[OURS], times[best], strict=True)), method="inclusive")
    cells = [format_seconds(medians[who]) if who in medians else "" for who in (OURS, NCHW, CHANNELS_LAST)]
    ratio = f"**{medians[best] / medians[OURS]:.2f}**"
    return " | ".join([f"| {name}", "x".join(map(str, shape)), *cells, ratio, f"{low:.2f} to {high:.2f} |"])


def _measure(name: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds a step of every program, after making sure that all of them compute the same."""
    work = WORKS[name]
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    x = random.standard_normal(work.shape, dtype=np.float32)
    labels = random.integers(work.classes, size=work.shape[0])

    ours = work.build()
    twins: dict[str, Any] = {NCHW: torch_twin(ours)}
    inputs = {NCHW: torch.from_numpy(x)}
    if x.ndim == 4:
        # PyTorch tells layouts of one channel apart by strides alone, so both are asked for.
        inputs[CHANNELS_LAST] = inputs[NCHW].to(memory_format=torch.channels_last)
        twins[CHANNELS_LAST] = torch_twin(ours).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        twins[CHANNELS_LAST].load_state_dict(twins[NCHW].state_dict())
    ours.load_state_dict(_weights(twins[NCHW]))

    if options.inference:
        steps: dict[str, Step] = {OURS: lambda: ours.predict(x, batch_size=len(x))}
        steps |= {who: _inference(twin.eval(), inputs[who]) for who, twin in twins.items()}
    else:
        trainer = deepnet.Trainer(ours, nn.CrossEntropyLoss(), optim.SGD(LR, MOMENTUM))
        steps = {OURS: lambda: trainer.step(x, labels)}
        y = torch.from_numpy(labels)
        steps |= {who: _training_step(twin, inputs[who], y, options.fused) for who, twin in twins.items()}
    # Outside of the steps, where entering it costs PyTorch nothing.
    with torch.inference_mode() if options.inference else nullcontext():
        _check(name, {OURS: ours, **twins}, steps)
        return interleave(steps, options.repeats)


def _training_step(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, fused: bool) -> Step:
    loss_of = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, fused=fused or None)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss: torch.Tensor = loss_of(net(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _inference(net: torch.nn.Module, x: torch.Tensor) -> Step:
    return lambda: net(x)


def _check(name: str, nets: dict[str, Any], steps: dict[str, Step]) -> None:
    """End the program unless all steps return the same and change the weights, equal at first, by the same."""
    before = {who: _weights(net) for who, net in nets.items()}
    results = {who: [np.asarray(step()) for _ in range(CHECKED_STEPS)] for who, step in steps.items()}
    changes = {
        who: {key: value - before[who][key] for key, value in _weights(net).items()} for who, net in nets.items()
    }
    for who in nets.keys() - {OURS}:
        for i, (got, expected) in enumerate(zip(results[OURS], results[who], strict=True), start=1):
            require_close(f"{name}: result of step {i} of {who}", got, expected, TOLERANCE)
        for key, weights in before[OURS].items():
            require_close(f"{name}: start of {key} of {who}", weights, before[who][key], TOLERANCE)
            require_close(f"{name}: change of {key} of {who}", changes[OURS][key], changes[who][key], CHANGE_TOLERANCE)


def _weights(net: Any) -> dict[str, NDArray[np.float32]]:
    """Copies of all parameters, of either library's network, by name."""
    return {name: np.asarray(value).copy() for name, value in net.state_dict().items()}


if __name__ == "__main__":
    main()
