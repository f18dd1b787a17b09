"""The command ``deepnet``: train, evaluate, predict, sample, info, filter."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from deepnet import nn
    from deepnet.data import Split

_DATA_HELP = (
    "digits, fashion-mnist, a folder of IDX files ({train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]), or a text file"
)
_LAST_SEED = 2**64 - 1
_INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended: 128 + SIGINT


class CommandError(Exception):
    """What is wrong with a command, in one line."""


class _Data(NamedTuple):
    train: Split
    test: Split
    names: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 2 for an error, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except KeyboardInterrupt:
        print("deepnet: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CommandError, ImportError, OSError, RuntimeError, TypeError, ValueError, FloatingPointError) as error:
        print(f"deepnet: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deepnet", description="Train and use networks on images and texts.")
    parser.set_defaults(run=_root)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--cmakedir", action="store_true", help="print where find_package(deepnet) looks, and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    train = commands.add_parser("train", help="train a network and test it")
    train.set_defaults(run=_train)
    train.add_argument("data", metavar="DATA", help=_DATA_HELP)
    train.add_argument(
        "--model",
        metavar="NAME",
        help="digits-cnn, lenet, mlp or vgg-small, by default by image size; charlstm or chargru for a text",
    )
    train.add_argument("--epochs", type=_whole(), metavar="N", help="walks over the training data")
    train.add_argument(
        "--batch-size",
        type=_whole(),
        metavar="N",
        help="images a step, or places in the text to read from side by side",
    )
    train.add_argument("--lr", type=_positive, metavar="RATE", help="learning rate of the first epoch")
    train.add_argument(
        "--seed", type=_whole(0, _LAST_SEED), default=0, metavar="N", help="of weights, order and dropout (default: 0)"
    )
    train.add_argument("--threads", type=_whole(), metavar="N", help="threads to compute with")
    train.add_argument("--save", type=Path, metavar="FILE", help="write the network to FILE (safetensors)")
    train.add_argument("--plot", type=Path, metavar="FILE.png", help="draw loss curves, filters and mistakes")
    train.add_argument("--quiet", action="store_true", help="no progress bar")

    evaluate = commands.add_parser("evaluate", help="test a saved network")
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument("file", metavar="FILE", type=Path, help="a network that train --save wrote")
    evaluate.add_argument("data", metavar="DATA", help=_DATA_HELP)

    predict = commands.add_parser("predict", help="classify images")
    predict.set_defaults(run=_predict)
    predict.add_argument("file", metavar="FILE", type=Path, help="a network that train --save wrote")
    predict.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="image files, or .npy arrays (H, W)")
    predict.add_argument("--data", metavar="DATA", help="data set whose class names to print: digits or fashion-mnist")
    predict.add_argument("--size", metavar="HxW", help="size to scale images to, where the network does not tell")
    predict.add_argument("--invert", action="store_true", help="for dark ink on light paper: swap black and white")

    sample = commands.add_parser("sample", help="let a character model write")
    sample.set_defaults(run=_sample)
    sample.add_argument("file", metavar="FILE", type=Path, help="a network that train TEXT --save wrote")
    sample.add_argument("--prompt", default="", metavar="TEXT", help="what the network is to go on from")
    sample.add_argument("--length", type=_whole(), default=500, metavar="N", help="characters (default: 500)")
    sample.add_argument(
        "--temperature", type=_positive, default=0.8, metavar="T", help="below 1 safer, above 1 bolder (0.8)"
    )
    sample.add_argument("--top-k", type=_whole(), metavar="K", help="draw from the K likeliest characters only")
    sample.add_argument(
        "--seed", type=_whole(0, _LAST_SEED), metavar="N", help="of the draws; without it each run differs"
    )

    info = commands.add_parser("info", help="show this build, or what is in a model file")
    info.set_defaults(run=_info)
    info.add_argument("file", metavar="FILE", nargs="?", type=Path)

    filters = commands.add_parser("filter", help="convolve a picture")
    filters.set_defaults(run=_filter)
    filters.add_argument("kind", choices=("gaussian", "sobel"))
    filters.add_argument("source", metavar="IN.png", type=Path)
    filters.add_argument("target", metavar="OUT.png", type=Path)
    filters.add_argument("--sigma", type=_positive, default=2.0, help="of the Gaussian, in pixels (default: 2)")
    return parser


def _root(options: argparse.Namespace) -> int:
    import deepnet

    if options.version:
        print(f"deepnet {deepnet.__version__}")
    elif options.cmakedir:
        print(deepnet.cmake_dir())
    else:
        _parser().print_help()
    return 0


def _train(options: argparse.Namespace) -> int:
    if Path(options.data).is_file():
        from deepnet import _text_job

        _text_job.train(options)
    else:
        _train_on_images(options)
    return 0


def _train_on_images(options: argparse.Namespace) -> None:
    import deepnet
    from deepnet import _models, callbacks, nn, optim

    for path in (options.save, options.plot):
        check_writable(path)
    if options.plot is not None:
        from deepnet._plot import check_plot

        check_plot(options.plot)
    if options.threads is not None:
        deepnet.set_num_threads(options.threads)
    data = _load_data(options.data)
    shape = data.train[0].shape[1:]
    name = _choose_model(options.model, shape)
    recipe = _models.RECIPES[name]
    epochs = options.epochs or recipe.epochs

    deepnet.manual_seed(options.seed)
    net = recipe.build(shape, len(data.names))
    weights = sum(parameter.size for parameter in net.parameters().values())
    images = f"{len(data.train[0]):,} images of {shape[1]} x {shape[2]}"
    if recipe.shifted:
        images += ", also shifted by a pixel"
    threads = count(deepnet.get_num_threads(), "thread")
    print(f"{name}: {weights:,} weights, {images}, {count(epochs, 'epoch')}, {deepnet.active_isa()}, {threads}")
    begin = time.perf_counter()
    interrupted = False
    try:
        net.fit(
            *(_models.with_shifted(*data.train) if recipe.shifted else data.train),
            loss=nn.CrossEntropyLoss(),
            optimizer=optim.SGD(options.lr or recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay),
            epochs=epochs,
            batch_size=options.batch_size or recipe.batch_size,
            validation_data=data.test if options.plot is not None else None,
            seed=options.seed,
            callbacks=callbacks.cosine_decay(epochs),
            progress=not options.quiet,
        )
    except KeyboardInterrupt:
        interrupted = True
    seconds = time.perf_counter() - begin
    if options.save is not None:
        net.save(options.save)
    if interrupted:
        raise KeyboardInterrupt
    predicted = _report(net, data)
    print(f"\ntrained in {seconds:.1f} s")
    if options.plot is not None:
        from deepnet._plot import plot_training

        assert net.history is not None
        plot_training(options.plot, net, net.history, *data.test, predicted, data.names)
        print(f"drawn to {options.plot}")
    if options.save is not None:
        print(f"saved to {options.save}")
    print("\nnext, try:")
    for suggestion in _suggestions(options, name):
        print(f"  {suggestion}")


def _suggestions(options: argparse.Namespace, model: str) -> list[str]:
    if options.save is None:
        first = f"deepnet train {options.data} --save model.safetensors"
    else:
        first = f"deepnet evaluate {options.save} {options.data}"
    lines = [first]
    if options.plot is None:
        lines.append(f"deepnet train {options.data} --plot training.png")
    other = "mlp" if model != "mlp" else "vgg-small"
    lines.append(f"deepnet train {options.data} --model {other}")
    if options.data == "digits":
        lines.append("deepnet train fashion-mnist --model lenet --epochs 5")
    return lines


def _evaluate(options: argparse.Namespace) -> int:
    import deepnet

    net = deepnet.load(options.file)
    if Path(options.data).is_file():
        from deepnet import _text_job

        _text_job.evaluate(net, options)
    else:
        _report(net, _load_data(options.data))
    return 0


def _report(net: nn.Layer, data: _Data) -> NDArray[np.int64]:
    """Print how well the test set is classified; returns the predictions."""
    import numpy as np

    from deepnet import _terminal

    x, labels = data.test
    outputs = net.predict(x)
    if outputs.ndim != 2 or outputs.shape[1] < len(data.names):
        raise CommandError(
            f"expected a network with an output for each of {len(data.names)} classes, got {outputs.shape[1:]}"
        )
    predicted: NDArray[np.int64] = outputs.argmax(axis=1).astype(np.int64)
    names = data.names + [str(i) for i in range(len(data.names), outputs.shape[1])]
    matrix = _terminal.confusion_matrix(labels, predicted, len(names))
    print(f"\ntest accuracy: {np.mean(predicted == labels):.4f}\n")
    print(_terminal.format_confusion(matrix, names, _terminal.use_colour(sys.stdout)))
    print("\naccuracy by class:")
    print(_terminal.format_class_accuracy(matrix, names))
    return predicted


def _predict(options: argparse.Namespace) -> int:
    import numpy as np

    import deepnet
    from deepnet import _images, _terminal

    net = deepnet.load(options.file)
    shape = _images.input_shape(net, options.size)
    images = np.concatenate([_images.read_image(path, shape, options.invert) for path in options.images])
    outputs = net.predict(images)
    if outputs.ndim != 2:
        raise CommandError(f"expected a network that classifies, got outputs of shape {outputs.shape}")
    names = _class_names(options.data, outputs.shape[1])
    for path, row in zip(options.images, _images.probabilities(net, outputs), strict=True):
        print(f"{path}:")
        print(_terminal.format_ranking(row, names))
    return 0


def _class_names(data_name: str | None, classes: int) -> list[str]:
    """A model file does not have them: those of the named data set, or numbers."""
    from deepnet import data

    if data_name is None:
        return [str(i) for i in range(classes)]
    known = {"digits": [str(i) for i in range(10)], "fashion-mnist": list(data.FASHION_CLASSES)}
    if data_name not in known:
        raise CommandError(f"expected --data to be one of {', '.join(known)}, got {data_name!r}")
    if classes != len(known[data_name]):
        raise CommandError(f"expected a network for the {len(known[data_name])} classes of {data_name}, got {classes}")
    return known[data_name]


def _sample(options: argparse.Namespace) -> int:
    from deepnet import _text_job

    _text_job.sample(options)
    return 0


def _info(options: argparse.Namespace) -> int:
    import deepnet
    from deepnet import _images

    if options.file is None:
        deepnet.show_config()
        return 0
    net = deepnet.load(options.file)
    shape = _images.table_shape(net)
    if shape is not None:
        print(f"for inputs of shape ({', '.join(['N', *map(str, shape[1:])])}):\n")
    net.summary(shape)
    return 0


def _filter(options: argparse.Namespace) -> int:
    from deepnet import _images, image

    check_writable(options.target)
    picture = _images.read_picture(options.source)
    if options.kind == "gaussian":
        # Three standard deviations to each side hold 99.7 % of the weight.
        kernel = image.gaussian_kernel(2 * int(3 * options.sigma + 0.5) + 1, options.sigma)
        result = image.convolve(picture, kernel)
    else:
        result = image.sobel(picture)[0]
        result = result / max(float(result.max(initial=0.0)), 1e-12)
    _images.write_picture(options.target, result)
    print(f"{options.kind} of {options.source} written to {options.target}")
    return 0


def _load_data(name: str) -> _Data:
    from deepnet import data

    if name == "digits":
        return _Data(*data.digits(), [str(i) for i in range(10)])
    if name == "fashion-mnist":
        return _Data(*data.fashion_mnist(), list(data.FASHION_CLASSES))
    if not Path(name).is_dir():
        raise CommandError(f"expected digits, fashion-mnist, a folder of IDX files or a text file, got {name!r}")
    train, test = data.idx_folder(name)
    if not len(train[0]) or not len(test[0]):
        raise CommandError(f"expected images to train and to test in {name}, got {len(train[0])} and {len(test[0])}")
    classes = int(max(train[1].max(), test[1].max())) + 1
    return _Data(train, test, [str(i) for i in range(classes)])


def _choose_model(name: str | None, shape: tuple[int, ...]) -> str:
    from deepnet import _models

    if name is None:
        return _models.default_model(shape)
    if name not in _models.RECIPES:
        raise CommandError(f"expected --model to be one of {', '.join(_models.RECIPES)}, got {name!r}")
    if min(shape[1:]) < _models.SMALLEST[name]:
        raise CommandError(
            f"expected images of at least {_models.SMALLEST[name]} x {_models.SMALLEST[name]} for {name}, "
            f"got {shape[1]} x {shape[2]}"
        )
    return name


def check_writable(path: Path | None) -> None:
    """Fail before the work, not after it."""
    if path is None:
        return
    if path.is_dir():
        raise CommandError(f"expected a file to write, got the folder {path}")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise CommandError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise CommandError(f"cannot write {path}: no permission to write in {folder}")


def _positive(text: str) -> float:
    """A number above zero, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _whole(least: int = 1, most: int = 2**31 - 1) -> Callable[[str], int]:
    """A number without fraction, for argparse."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text!r}")
        return value

    return read


def count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
