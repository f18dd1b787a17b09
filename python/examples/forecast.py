"""A forecast of a real series: carbon dioxide on Mauna Loa, each of the next twelve months, by a GRU.

The network reads the changes from month to month of the last two years and answers with those of the next twelve
months, whose running sum on top of the last level is the forecast. It learns from 1958 to 1993, and is tested on
forecasts from every month of the eight years after.

    python forecast.py [--epochs N] [--seed N] [--output FILE.png]

Compared with it by mean absolute error, in parts per million:
    naive             every month to come is like the last one
    seasonal naive    every month to come is like the same month a year before
    seasonal drift    the same, plus how much the last twelve months were above the twelve before them

Data: C. D. Keeling and T. P. Whorf, "Atmospheric CO2 concentrations", 2004, public domain, as in statsmodels
(pip install statsmodels). Draws the last years if matplotlib is there and an output is named.
"""

import argparse
from pathlib import Path

import numpy as np
from statsmodels.datasets import co2

import deepnet as dn
from deepnet import callbacks, nn, optim

WINDOW, HORIZON, YEAR = 24, 12, 12
TEST_MONTHS = 8 * YEAR


def monthly_co2():
    """Monthly means of the weekly measurements, 1958-03 to 2001-12; months without any lie between their neighbours."""
    weekly = co2.load_pandas().data["co2"]
    return weekly.resample("MS").mean().interpolate()


def windows(levels, begin, end):
    """Changes before and after each month from begin to end: x (N, 24, 1), y (N, 12); those are the first unknown."""
    months = np.arange(begin, end - HORIZON + 1)
    x, y = dn.data.series(np.diff(levels[begin - WINDOW - 1 : end]), WINDOW, HORIZON)
    return months, x, y


def train(levels, end, epochs, seed):
    """A function from windows to forecasts, learned from what is before the month `end`."""
    _, x, y = windows(levels, WINDOW + 1, end)
    mean, scale = y.mean(), y.std()
    dn.manual_seed(seed)
    net = nn.Sequential(nn.GRU(1, 32, return_sequences=False), nn.Linear(32, HORIZON))
    net.fit(
        (x - mean) / scale,
        (y - mean) / scale,
        loss=nn.MSELoss(),
        optimizer=optim.SGD(lr=0.05, momentum=0.9, weight_decay=1e-3),
        epochs=epochs,
        seed=seed,
        callbacks=callbacks.cosine_decay(epochs),
        progress=False,
    )
    return lambda x: net.predict((x - mean) / scale) * scale + mean


def forecasts(levels, months, changes):
    """By name, (N, 12): what each method says, in those months, of the twelve to come."""
    ahead = np.arange(HORIZON)
    last, year_before = levels[months - 1, None], levels[months[:, None] - YEAR + ahead]
    drift = [levels[m - YEAR : m].mean() - levels[m - 2 * YEAR : m - YEAR].mean() for m in months]
    return {
        "naive": np.broadcast_to(last, (len(months), HORIZON)),
        "seasonal naive": year_before,
        "seasonal drift": year_before + np.reshape(drift, (-1, 1)),
        "GRU": last + np.cumsum(changes, axis=1),
    }


def draw(series, months, truth, forecast, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    axes.plot(series.index[months[0] - YEAR :], series[months[0] - YEAR :], "k", linewidth=1, label="measured")
    for row in range(0, len(months), YEAR):
        days = series.index[months[row] : months[row] + HORIZON]
        axes.plot(
            days, forecast[row], "o-", markersize=3, label="forecast in January" if row == 0 else None, color="C1"
        )
    axes.set(ylabel="CO2, parts per million")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    series = monthly_co2()
    levels = series.to_numpy()
    end = len(levels) - TEST_MONTHS
    network = train(levels, end, options.epochs, options.seed)
    months, x, _ = windows(levels, end, len(levels))
    truth = levels[months[:, None] + np.arange(HORIZON)]
    results = forecasts(levels, months, network(x))
    print(
        f"{len(months)} forecasts of {HORIZON} months each, from {series.index[end]:%Y-%m} on: mean absolute error, ppm"
    )
    errors = {name: float(np.abs(forecast - truth).mean()) for name, forecast in results.items()}
    for name, error in errors.items():
        print(f"{name:15} {error:.3f}")
    print(f"the GRU's error is {1 - errors['GRU'] / errors['seasonal naive']:.0%} below that of seasonal naive")
    if options.output is not None:
        draw(series, months, truth, results["GRU"], options.output)
        print(f"drawn to {options.output}")


if __name__ == "__main__":
    main()
