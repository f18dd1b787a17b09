"""What model files hold beside the network: the optimizer, its settings as JSON in the metadata."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

from deepnet import optim


def read_optimizer(path: str) -> optim.Optimizer:
    """One of the class and settings in the file, without its state; ValueError where there is none to make."""
    where = f"[load_optimizer] {path!r}"
    text = _metadata(path, where).get("optimizer")
    if not isinstance(text, str):
        raise ValueError(f"{where}: expected a file that was saved with an optimizer, got one without")
    try:
        saved = json.loads(text)
        kind, settings = saved["kind"], dict(saved["config"])
        made = getattr(optim, kind) if kind in optim.__all__ and kind != "Optimizer" else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{where}: expected an optimizer's class and settings, got {text[:200]!r}") from error
    if made is None:
        raise ValueError(
            f"{where}: expected one of {[name for name in optim.__all__ if name != 'Optimizer']}, got {kind!r}"
        )
    if "beta1" in settings and "beta2" in settings:  # a pair to its class, two numbers in the file
        settings["betas"] = settings.pop("beta1"), settings.pop("beta2")
    try:
        optimizer: optim.Optimizer = made(**settings)
    except (TypeError, ValueError) as error:
        reason = inspect.cleandoc(str(error)).splitlines()[0]
        raise ValueError(f"{where}: expected settings of {kind}, got {settings!r}: {reason}") from error
    return optimizer


def _metadata(path: str, where: str) -> dict[str, object]:
    """Of a safetensors file: eight bytes, little-endian, tell the length of the JSON behind them."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > Path(path).stat().st_size - 8:
            raise ValueError(f"{where}: expected a safetensors file, whose header ends in it, got other contents")
        text = file.read(length)
    try:
        metadata = json.loads(text).get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{where}: expected a safetensors file, whose header is a JSON object, got other contents"
        ) from error
    return metadata if isinstance(metadata, dict) else {}
