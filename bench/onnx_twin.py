"""The same network for ONNX Runtime: a graph made node by node."""

from __future__ import annotations

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from timing import Step

from deepnet import nn

OPSET, IR_VERSION = 17, 9  # what any ONNX Runtime of the last years reads


def onnx_step(net: nn.Sequential, x: NDArray[np.float32], threads: int) -> Step:
    """Inference on that batch, on so many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    session = onnxruntime.InferenceSession(_graph(net, x.shape), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


def _graph(net: nn.Sequential, shape: tuple[int, ...]) -> bytes:
    nodes, weights, value = [], [], "x"
    for i, layer in enumerate(net):
        names = [f"{i}.{name}" for name in layer.parameters()]
        arrays = [p.data for p in layer.parameters().values()]
        weights += [numpy_helper.from_array(np.array(a), name) for a, name in zip(arrays, names, strict=True)]
        operator, attributes = _operator(layer)
        nodes.append(helper.make_node(operator, [value, *names], [f"y{i}"], **attributes))
        value = f"y{i}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "net", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return bytes(model.SerializeToString())


def _operator(layer: nn.Layer) -> tuple[str, dict[str, object]]:
    if isinstance(layer, nn.Linear):
        return "Gemm", {"transB": 1}
    if isinstance(layer, nn.Conv2d):
        window = {"strides": layer.stride, "pads": 2 * tuple(layer.padding), "dilations": layer.dilation}
        return "Conv", {**window, "group": layer.groups}
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        window = {"kernel_shape": layer.kernel_size, "strides": layer.stride, "pads": 2 * tuple(layer.padding)}
        return ("MaxPool", window) if isinstance(layer, nn.MaxPool2d) else ("AveragePool", window)
    if isinstance(layer, nn.ReLU):
        return "Relu", {}
    if isinstance(layer, nn.Flatten):
        return "Flatten", {}
    raise TypeError(f"expected a layer that has an operator, got {layer.kind}")
