"""What the command line does with texts: train a character model, test it, let it write."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import deepnet
from deepnet import _models, callbacks, data, nn, optim
from deepnet._states import states_put_aside
from deepnet.cli import CommandError, check_writable, count

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deepnet.data import Alphabet, Text

ALPHABET = "alphabet"  # name of the alphabet among a model file's metadata
MOMENTUM = 0.9
_HELD_OUT = 0.1
_SAMPLE = 300  # characters shown after training
_CHUNK = 1024  # characters that are tested in one call


# --- commands --------------------------------------------------------------------------------------------------------


def train(options: argparse.Namespace) -> None:
    """``deepnet train TEXT.txt``."""
    check_writable(options.save)
    if options.plot is not None:
        raise CommandError("expected no --plot with a text: it draws what networks of images learn")
    if options.threads is not None:
        deepnet.set_num_threads(options.threads)
    text = data.text(options.data)
    deepnet.manual_seed(options.seed)
    model = options.model or "charlstm"
    job = Training(text, model, options.epochs, options.batch_size, options.lr)
    weights = sum(parameter.size for parameter in job.net.parameters().values())
    characters = f"{len(text):,} characters, {len(text.alphabet)} of them different"
    threads = count(deepnet.get_num_threads(), "thread")
    print(
        f"{model}: {weights:,} weights, {characters}, {count(job.epochs, 'epoch')}, {deepnet.active_isa()}, {threads}"
    )
    interrupted, begin = False, time.perf_counter()
    try:
        job.run(progress=not options.quiet)
    except KeyboardInterrupt:
        interrupted = True
    seconds = time.perf_counter() - begin
    if options.save is not None:
        job.net.save(options.save)
    if interrupted:
        raise KeyboardInterrupt
    _report(job.net, job.test, "held-out characters")
    print(f"for comparison: {frequency_bits(job.train, job.test):.3f} by how frequent each character is")
    print("\nit writes:\n")
    for character in write(job.net, text.alphabet, "", _SAMPLE, np.random.default_rng(options.seed), 0.7):
        put(character)
    print(f"\n\ntrained in {seconds:.1f} s, {len(job.train) * job.epochs / seconds:,.0f} characters a second")
    if options.save is not None:
        print(f"saved to {options.save}")
    print("\nnext, try:")
    for suggestion in _suggestions(options, _first_word(text), job.epochs):
        print(f"  {suggestion}")


def evaluate(net: nn.Layer, options: argparse.Namespace) -> None:
    """``deepnet evaluate FILE TEXT.txt``: on the whole text."""
    _report(net, data.text(options.data, alphabet_of(net, options.file)), "characters")


def sample(options: argparse.Namespace) -> None:
    """``deepnet sample FILE``: the prompt and what the network writes after it."""
    net = deepnet.load(options.file)
    alphabet = alphabet_of(net, options.file)
    random = np.random.default_rng(options.seed)
    characters = write(net, alphabet, options.prompt, options.length, random, options.temperature, options.top_k)
    first = next(characters)  # what is wrong is found out before anything is printed
    put(options.prompt + first)
    for character in characters:
        put(character)
    put("\n")


def _report(net: nn.Layer, text: Text, what: str) -> None:
    print(f"\nbits per character: {bits_per_character(net, text):.3f} on {len(text):,} {what}")


def _first_word(text: Text) -> str:
    """A prompt in the text's own characters."""
    words = text.alphabet.decode(text.codes[:1000]).split()
    return words[0][:20] if words else ""


def _suggestions(options: argparse.Namespace, prompt: str, epochs: int) -> list[str]:
    name = shlex.quote(options.data)
    if options.save is None:
        return [f"deepnet train {name} --save model.safetensors", f"deepnet train {name} --epochs {2 * epochs}"]
    saved = shlex.quote(str(options.save))
    return [
        f"deepnet sample {saved} --prompt {shlex.quote(prompt)} --temperature 0.5",
        f"deepnet sample {saved} --length 2000 --top-k 5 --seed 1",
        f"deepnet train {name} --epochs {2 * epochs} --save {saved}",
    ]


# --- what they are made of -------------------------------------------------------------------------------------------


def build(model: str, alphabet: Alphabet) -> nn.Sequential:
    """An untrained character model, which knows its alphabet."""
    if model not in _models.TEXT_RECIPES:
        raise CommandError(f"expected --model to be one of {', '.join(_models.TEXT_RECIPES)} for a text, got {model!r}")
    net = _models.TEXT_RECIPES[model].build(len(alphabet))
    net.metadata = {ALPHABET: alphabet.characters}
    return net


class Training:
    """A character model and how it is trained, from the recipe unless told otherwise."""

    def __init__(
        self,
        text: Text,
        model: str = "charlstm",
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
    ) -> None:
        self.net = build(model, text.alphabet)
        if round(_HELD_OUT * len(text)) < 2:
            raise CommandError(
                f"expected a text of {math.ceil(1.5 / _HELD_OUT)} characters or more, of which a tenth is held out to "
                f"test on, got {len(text)}"
            )
        self.train, self.test = text.split(_HELD_OUT)
        if batch_size is not None and batch_size >= len(self.train):
            raise CommandError(
                f"expected --batch-size below the {len(self.train):,} characters to train on, got {batch_size:,}"
            )
        recipe = _models.TEXT_RECIPES[model]
        # Few rows for a short text, so that each is long enough to learn from.
        rows = batch_size or min(recipe.batch_size, max(1, len(self.train) // (4 * recipe.length)))
        self.batches = self.train.batches(rows, recipe.length)
        self.epochs = epochs or min(max(math.ceil(recipe.steps / len(self.batches)), 3), 50)
        self.lr = lr or recipe.lr

    def run(self, progress: bool) -> None:
        """Train by truncated backpropagation through time; each walk through the text begins with an empty state."""
        self.net.fit(
            self.batches,
            loss=nn.CrossEntropyLoss(axis=-1),
            optimizer=optim.SGD(self.lr, momentum=MOMENTUM),
            epochs=self.epochs,
            callbacks=callbacks.cosine_decay(self.epochs),
            progress=progress,
        )


def alphabet_of(net: nn.Layer, path: Path) -> Alphabet:
    """The alphabet of a character model."""
    if ALPHABET not in net.metadata:
        raise CommandError(
            f"expected a character model, such as deepnet train TEXT.txt --save FILE writes, got {path} "
            "without an alphabet"
        )
    return data.Alphabet(net.metadata[ALPHABET])


def bits_per_character(net: nn.Layer, text: Text) -> float:
    """Mean of -log2 p(character | those before it), each character from the second one on.

    The text is read in one go; a network that is not stateful reads it in pieces of 1,024 characters instead.
    """
    total, count = 0.0, 0
    with states_put_aside(net):
        for x, labels in text.batches(1, _CHUNK):
            logits = net.predict(x).astype(np.float64)
            if logits.shape != x.shape:
                raise CommandError(f"expected a network from {x.shape} to as many outputs, got {logits.shape}")
            logits -= logits.max(axis=-1, keepdims=True)
            chosen = np.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
            total += float((np.log(np.exp(logits).sum(axis=-1)) - chosen).sum())
            count += labels.size
    return total / count / math.log(2.0)


def frequency_bits(train: Text, test: Text) -> float:
    """What bits_per_character is of a model that knows how frequent each character is, and nothing else."""
    # Every character is counted once more than it was seen, so that none is impossible (Laplace's rule).
    counts = np.bincount(train.codes, minlength=len(train.alphabet)) + 1.0
    return float(-np.log2(counts[test.codes] / counts.sum()).mean())


def write(
    net: nn.Layer,
    alphabet: Alphabet,
    prompt: str,
    length: int,
    random: np.random.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Iterator[str]:
    """The characters that the network writes after the prompt, one by one as they come.

    Each is drawn from p_i = exp(y_i / temperature) / sum_j exp(y_j / temperature) over all characters, or over the
    `top_k` likeliest. Without a prompt the network goes on from a line end.
    """
    step = getattr(net, "step", None)  # recurrent layers have it, and networks of several layers
    if step is None:
        raise CommandError(f"expected a recurrent network, got a {net.kind}")
    start = prompt or ("\n" if "\n" in alphabet.characters else alphabet.characters[0])
    net.reset_state()
    for x in alphabet.one_hot(alphabet.encode(start)):
        logits = step(x[None])
    for _ in range(length):
        if logits.shape != (1, len(alphabet)):
            raise CommandError(f"expected a network with {len(alphabet)} outputs, got {logits.shape[1:]}")
        if not np.isfinite(logits).all():
            raise CommandError("expected finite scores of the network, got some that are not")
        code = draw(logits[0], random, temperature, top_k)
        yield alphabet.characters[code]
        logits = step(alphabet.one_hot([code]))


def draw(
    logits: NDArray[np.float32], random: np.random.Generator, temperature: float = 1.0, top_k: int | None = None
) -> int:
    """A code by its probability."""
    with np.errstate(over="ignore"):  # a temperature near zero leaves the likeliest alone
        scaled = (logits.astype(np.float64) - logits.max()) / temperature
    if top_k is not None and top_k < len(scaled):
        scaled[np.argsort(-scaled, kind="stable")[top_k:]] = -np.inf
    shares = np.cumsum(np.exp(scaled))
    # The draw is below the sum, so that it falls on a code, and on none whose share is 0.
    return int(np.searchsorted(shares, random.random() * shares[-1], side="right"))


def put(text: str) -> None:
    """Write to standard output at once, with a question mark for what it cannot show."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()
