"""A network's training step, or inference, in every library that is installed: equal weights, equal batches."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from agreement import CHANGE_TOLERANCE, CHECKED_STEPS, TOLERANCE, Disagreement, require_close
from networks import Work
from numpy.typing import NDArray
from timing import Step
from twin import torch_twin

import deepnet
from deepnet import nn, optim

try:
    from onnx_twin import onnx_step
except ImportError:
    onnx_step = None
try:
    from jax_twin import jax_inference, jax_training_step
except ImportError:
    jax_inference = jax_training_step = None

Array = NDArray[np.float32]
LR, MOMENTUM = 0.01, 0.9
OURS, NCHW, CHANNELS_LAST, COMPILED = "deepnet", "PyTorch NCHW", "PyTorch channels_last", "torch.compile"
ONNX, JAX = "ONNX Runtime", "JAX"


class Program(NamedTuple):
    """A step, which returns loss or output, and the network's parameters as they are now, by deepnet's names."""

    step: Step
    weights: Callable[[], Mapping[str, Any]] | None = None


def training_programs(work: Work, threads: int, compiled: bool = True) -> dict[str, Step]:
    """Steps of SGD with momentum on one batch, after a check that all of them compute the same."""
    net, x, labels = _net_and_batch(work)
    y = torch.from_numpy(labels)
    trainer = deepnet.Trainer(net, nn.CrossEntropyLoss(), optim.SGD(LR, MOMENTUM))
    programs = {OURS: Program(lambda: trainer.step(x, labels), net.state_dict)}
    for who, (twin, images) in _torch_twins(net, x).items():
        programs[who] = Program(_training_step(twin, twin, images, y), twin.state_dict)
    if compiled:
        twin, images = _torch_twins(net, x)[NCHW]
        fast = _compile(twin, threads, lambda f: torch.nn.functional.cross_entropy(f(images), y).backward())
        if fast is not None:
            programs[COMPILED] = Program(_training_step(twin, fast, images, y), twin.state_dict)
    if jax_training_step is not None and x.ndim == 2:
        programs[JAX] = Program(*jax_training_step(net, x, labels, LR, MOMENTUM))
    _check(programs)
    return {who: program.step for who, program in programs.items()}


def inference_programs(work: Work, threads: int, compiled: bool = True) -> dict[str, Step]:
    """Outputs for one batch, after a check that all of them are the same. To be run in torch.inference_mode."""
    net, x, _ = _net_and_batch(work)
    programs = {OURS: Program(lambda: net.predict(x, batch_size=len(x)))}
    for who, (twin, images) in _torch_twins(net, x).items():
        programs[who] = Program(partial(twin.eval(), images))
    if compiled:
        twin, images = _torch_twins(net, x)[NCHW]
        fast = _compile(twin.eval(), threads, lambda f: f(images))
        if fast is not None:
            programs[COMPILED] = Program(partial(fast, images))
    if onnx_step is not None:
        programs[ONNX] = Program(onnx_step(net, x, threads))
    if jax_inference is not None:
        programs[JAX] = Program(jax_inference(net, x))
    _check(programs)
    return {who: program.step for who, program in programs.items()}


def missing() -> list[str]:
    """A line for every library that is not installed and has no column therefore."""
    absent = {ONNX: onnx_step, JAX: jax_inference}
    return [f"{who} is not installed: no column" for who, entry in absent.items() if entry is None]


def _net_and_batch(work: Work) -> tuple[nn.Sequential, Array, NDArray[np.int64]]:
    deepnet.manual_seed(0)
    net = work.build()
    nn.init.kaiming_normal(net)  # in deep nets the layers' own initial weights would let the signal fade
    random = np.random.default_rng(0)
    x = random.standard_normal(work.shape, dtype=np.float32)
    return net, x, random.integers(work.classes, size=work.shape[0])


def _torch_twins(net: nn.Sequential, x: Array) -> dict[str, tuple[torch.nn.Module, torch.Tensor]]:
    """The same network and batch in each layout of PyTorch."""
    twin, images = torch_twin(net), torch.from_numpy(x)
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in net.state_dict().items()})
    twins: dict[str, tuple[torch.nn.Module, torch.Tensor]] = {NCHW: (twin, images)}
    if x.ndim == 4:
        # PyTorch tells layouts of one channel apart by strides alone, so both are asked for.
        last: Any = copy.deepcopy(twin)
        last.to(memory_format=torch.channels_last)
        twins[CHANNELS_LAST] = (last, images.to(memory_format=torch.channels_last))
    return twins


def _compile(net: torch.nn.Module, threads: int, trial: Callable[[Any], Any]) -> Any:
    """The network compiled by PyTorch, or None and a line that says why not; `trial` makes the compiler run."""
    try:
        import torch._dynamo
        import torch._inductor.config

        torch._inductor.config.cpp.threads = threads  # compiled in; the cache of compiled code has to know
        torch._dynamo.reset()
        compiled = torch.compile(net)
        trial(compiled)
        net.zero_grad()
        return compiled
    except Exception as error:  # whatever the compiler stumbles over
        reason = (str(error).strip().splitlines() or [""])[0]
        print(f"torch.compile does not work here: {type(error).__name__}: {reason}", file=sys.stderr)
        return None


def _training_step(net: torch.nn.Module, forward: Any, x: torch.Tensor, y: torch.Tensor) -> Step:
    loss_of = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss: torch.Tensor = loss_of(forward(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _check(programs: dict[str, Program]) -> None:
    """End the program unless all steps return the same and change the weights, equal at first, by the same.

    What torch.compile makes is left out, with a line that says so, where it computes something else than PyTorch.
    """

    def weights(who: str) -> dict[str, Array]:
        read = programs[who].weights
        return {} if read is None else {name: np.asarray(value).copy() for name, value in read().items()}

    before = {who: weights(who) for who in programs}
    results = {who: [np.asarray(program.step()) for _ in range(CHECKED_STEPS)] for who, program in programs.items()}
    changes = {who: {key: value - before[who][key] for key, value in weights(who).items()} for who in programs}
    for who in [who for who in programs if who != OURS]:
        try:
            for i, (got, expected) in enumerate(zip(results[OURS], results[who], strict=True), start=1):
                require_close(f"result of step {i} of {who}", got, expected, TOLERANCE)
            for key, start in before[who].items():
                require_close(f"start of {key} of {who}", before[OURS][key], start, TOLERANCE)
                require_close(f"change of {key} of {who}", changes[OURS][key], changes[who][key], CHANGE_TOLERANCE)
        except Disagreement as difference:
            if who != COMPILED:
                raise
            del programs[who]
            print(f"torch.compile does not compute what PyTorch does and is left out: {difference}", file=sys.stderr)
