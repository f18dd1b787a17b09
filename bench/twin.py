"""The same network in PyTorch."""

from __future__ import annotations

import torch

from deepnet import nn

SAME_NAME = (nn.Flatten, nn.GELU, nn.ReLU, nn.Sigmoid, nn.Tanh)  # and no settings


def torch_twin(net: nn.Sequential) -> torch.nn.Sequential:
    """The network's layers in PyTorch, with initial weights that PyTorch draws from its own defaults."""
    twin = torch.nn.Sequential(*map(_layer, net))
    ours = {name: parameter.shape for name, parameter in net.parameters().items()}
    theirs = {name: tuple(parameter.shape) for name, parameter in twin.named_parameters()}
    if ours != theirs:
        raise RuntimeError(f"expected a twin with the parameters {ours}, got {theirs}")
    return twin


def _layer(layer: nn.Layer) -> torch.nn.Module:
    if isinstance(layer, nn.Conv2d):
        return torch.nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            bias=layer.bias is not None,
        )
    if isinstance(layer, nn.Linear):
        return torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    if isinstance(layer, nn.MaxPool2d):
        return torch.nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding)
    if isinstance(layer, nn.AvgPool2d):
        return torch.nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding)
    if isinstance(layer, nn.Dropout):
        return torch.nn.Dropout(layer.p)
    if isinstance(layer, nn.Softmax):
        return torch.nn.Softmax(layer.axis)
    if type(layer) in SAME_NAME:
        twin: torch.nn.Module = getattr(torch.nn, type(layer).__name__)()
        return twin
    raise TypeError(f"expected a layer that has a twin, got {layer.kind}")
