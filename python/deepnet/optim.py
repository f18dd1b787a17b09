"""Optimizers: from a parameter and its gradient to the next parameter.

>>> import numpy as np
>>> from deepnet import nn, optim
>>> net, loss, opt = nn.Linear(4, 3), nn.CrossEntropyLoss(), optim.SGD(lr=0.1, momentum=0.9)
>>> x, labels = np.ones((8, 4)), np.zeros(8, int)
>>> for _ in range(3):
...     net.zero_grad()
...     e = loss(net(x), labels)
...     dx = net.backward(loss.backward())
...     opt.step(net)
"""

from deepnet._core import SGD, Adam, AdamW, Optimizer, RMSprop

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop"]
