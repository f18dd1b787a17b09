"""Optimizers: from a parameter and its gradient to the next parameter.

>>> opt = optim.SGD(lr=0.1, momentum=0.9)
>>> net.zero_grad(); net(x); net.backward(dy)
>>> opt.step(net)
"""

from deepnet._core import SGD, Optimizer

__all__ = ["SGD", "Optimizer"]
