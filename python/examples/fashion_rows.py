"""Fashion-MNIST read row by row: a GRU sees 28 rows of 28 pixels, one after the other, and then tells what it saw.

No layer here knows that a picture has two dimensions; what the rows have to do with each other is in the state.
Published for a GRU with a support vector machine in the softmax's place: 88.8 % (Agarap 2018, arXiv:1709.03082).

    python fashion_rows.py [--hidden N] [--epochs N] [--data FOLDER]

prints the test accuracy of each epoch. The data: see deepnet.data.fashion_mnist.
"""

import argparse
import time

import deepnet as dn
from deepnet import callbacks, nn, optim


def row_reader(hidden, classes=10):
    return nn.Sequential(nn.GRU(28, hidden, return_sequences=False), nn.Linear(hidden, classes))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="folder of the four IDX files")
    options = parser.parse_args()

    (x, labels), (x_test, test_labels) = dn.data.fashion_mnist(options.data)
    rows, test_rows = x[:, 0], x_test[:, 0]  # (N, 1, 28, 28) -> (N, T = 28, F = 28)
    dn.manual_seed(options.seed)
    net = row_reader(options.hidden)
    begin = time.perf_counter()
    history = net.fit(
        rows,
        labels,
        optimizer=optim.SGD(lr=0.1, momentum=0.9, weight_decay=1e-4),
        epochs=options.epochs,
        batch_size=64,
        validation_data=(test_rows, test_labels),
        seed=options.seed,
        callbacks=callbacks.cosine_decay(options.epochs),
    )
    for epoch, accuracy in enumerate(history["val_accuracy"], start=1):
        print(f"epoch {epoch:2}: test accuracy {accuracy:.4f}")
    print(f"GRU of {options.hidden} units, {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
