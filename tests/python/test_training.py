"""Networks: training lands where PyTorch lands, in the same bits for any number of threads, and gradients add up."""

import numpy as np
import pytest

import deepnet as dn
from checks import assert_close, assert_same_bits, build, gradients, normal, weights
from deepnet import nn, optim

CONV_NET = [
    ("Conv2d", (1, 8, 3, 1, 1)),
    ("ReLU", ()),
    ("MaxPool2d", (2,)),
    ("Conv2d", (8, 16, 3, 2)),
    ("ReLU", ()),
    ("Flatten", ()),
    ("Linear", (144, 10)),
]
GROUPED_NET = [
    ("Conv2d", (1, 6, 5, 1, 2)),
    ("Tanh", ()),
    ("AvgPool2d", (3, 2, 1)),
    ("Conv2d", (6, 9, 3, 1, 1, 2, 3)),  # stride 1, padding 1, dilation 2, 3 groups
    ("ELU", ()),
    ("Conv2d", (9, 12, (1, 3), 1, 0, 1, 1, False)),
    ("GELU", ()),
    ("Flatten", ()),
    ("Linear", (12 * 6 * 4, 10)),
]
SMOOTH_NET = [
    ("Flatten", ()),
    ("Linear", (256, 33)),
    ("Sigmoid", ()),
    ("Linear", (33, 17)),
    ("Softplus", ()),
    ("Linear", (17, 17)),
    ("SiLU", ()),
    ("Linear", (17, 10)),
    ("LeakyReLU", ()),
]
POOLED_NET = [  # windows that overlap, behind activations
    ("Conv2d", (1, 6, 5)),
    ("Tanh", ()),
    ("MaxPool2d", (3, 2, 1)),
    ("Conv2d", (6, 8, 3)),
    ("LeakyReLU", ()),
    ("MaxPool2d", (2, 1)),
    ("Flatten", ()),
    ("Linear", (72, 10)),
]
NETS = {"conv": CONV_NET, "grouped": GROUPED_NET, "smooth": SMOOTH_NET, "pooled": POOLED_NET}
each_net = pytest.mark.parametrize("net", NETS)


def batch(rng, n=13, size=16):
    return normal(rng, (n, 1, size, size)), rng.integers(0, 10, n)


# --- against PyTorch -------------------------------------------------------------------------------------------------

OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "decay": {"weight_decay": 0.05},
    "all": {"momentum": 0.8, "weight_decay": 0.01, "nesterov": True},
}


@each_net
@pytest.mark.parametrize("options", OPTIONS)
def test_five_sgd_steps_land_on_pytorchs_weights(net, options, torch, rng):
    ours, theirs = build(NETS[net]), build(NETS[net], torch.nn)
    theirs.load_state_dict({name: torch.from_numpy(w) for name, w in ours.state_dict().items()})
    trainer = dn.Trainer(ours, nn.CrossEntropyLoss(), optim.SGD(lr=0.1, **OPTIONS[options]))
    optimizer, loss = torch.optim.SGD(theirs.parameters(), lr=0.1, **OPTIONS[options]), torch.nn.CrossEntropyLoss()
    start = weights(ours)
    for _ in range(5):
        x, labels = batch(rng)
        e = trainer.step(x, labels)
        optimizer.zero_grad()
        e_t = loss(theirs(torch.from_numpy(x)), torch.from_numpy(labels))
        e_t.backward()
        optimizer.step()
        assert e == pytest.approx(e_t.item(), rel=1e-4)
    for name, w in theirs.state_dict().items():
        # Weights near zero cannot agree better than the updates do: 1e-6, some 20 roundings of a weight.
        np.testing.assert_allclose(ours.state_dict()[name], w.numpy(), rtol=1e-3, atol=1e-6, err_msg=name)
        assert np.abs(ours.state_dict()[name] - start[name]).max() > 5e-5, f"{name} was not trained"


def test_training_reaches_a_low_loss(rng):
    """Sixteen random images are learnt by heart."""
    x, labels = batch(rng, 16)
    trainer = dn.Trainer(build(CONV_NET), nn.CrossEntropyLoss(), optim.SGD(lr=0.05, momentum=0.9))
    losses = [trainer.step(x, labels) for _ in range(60)]
    assert all(isinstance(e, float) for e in losses)
    assert losses[0] == pytest.approx(np.log(10), rel=0.2)
    assert losses[-1] < 0.05


# --- one native step is the same as its parts ------------------------------------------------------------------------


@each_net
@pytest.mark.parametrize("options", ["plain", "all"])
def test_trainer_step_equals_its_parts(net, options, rng):
    planned, by_hand = build(NETS[net]), build(NETS[net])
    by_hand.load_state_dict(planned.state_dict())
    loss, opt = nn.CrossEntropyLoss(), optim.SGD(lr=0.1, **OPTIONS[options])
    trainer = dn.Trainer(planned, nn.CrossEntropyLoss(), optim.SGD(lr=0.1, **OPTIONS[options]))
    for _ in range(3):
        x, labels = batch(rng)
        by_hand.zero_grad()
        e = loss(by_hand(x), labels)
        by_hand.backward(loss.backward())
        opt.step(by_hand)
        assert trainer.step(x, labels) == pytest.approx(e, rel=1e-6)
        for name, w in weights(by_hand).items():
            assert_close(weights(planned)[name], w, 10, name)


@each_net
def test_network_equals_its_layers_one_by_one(net, rng):
    """Modular backpropagation: each layer knows its own input and output only."""
    whole = build(NETS[net])
    parts = [getattr(nn, name)(*arguments) for name, arguments in NETS[net]]
    for i, layer in enumerate(parts):
        own = {name.split(".")[1]: w for name, w in whole.state_dict().items() if name.startswith(f"{i}.")}
        layer.load_state_dict(own)
    x, _ = batch(rng)
    value = x
    for layer in parts:
        value = layer(value)
    assert_close(whole(x), value, 10, "y")
    error = dy = normal(rng, value.shape)
    for layer in reversed(parts):
        error = layer.backward(error)
    assert_close(whole.backward(dy), error, 100, "dE/dx")
    for i, layer in enumerate(parts):
        for name, grad in gradients(layer).items():
            assert_close(gradients(whole)[f"{i}.{name}"], grad, 100, f"{i}.{name}")


def test_nested_sequentials_are_one_network(rng):
    flat = build(CONV_NET)
    layers = [getattr(nn, name)(*arguments) for name, arguments in CONV_NET]
    nested = nn.Sequential(nn.Sequential(*layers[:3]), nn.Sequential(layers[3], nn.Sequential(*layers[4:])))
    assert " ".join(nested.parameters()) == "0.0.weight 0.0.bias 1.0.weight 1.0.bias 1.1.2.weight 1.1.2.bias"
    nested.load_state_dict(dict(zip(nested.parameters(), flat.state_dict().values(), strict=True)))
    x, _ = batch(rng)
    dy = normal(rng, (13, 10))
    assert_same_bits(nested(x), flat(x))
    assert_same_bits(nested.backward(dy), flat.backward(dy))


# --- gradients add up ------------------------------------------------------------------------------------------------


@each_net
def test_gradients_accumulate_until_zeroed(net, rng):
    layer = build(NETS[net])
    x, _ = batch(rng)
    a, b = normal(rng, (13, 10)), normal(rng, (13, 10))
    layer(x)
    dx_a = layer.backward(a)
    first = gradients(layer)
    layer.zero_grad()
    assert not any(g.any() for g in gradients(layer).values())
    dx_b = layer.backward(b)
    second = gradients(layer)
    for name, g in first.items():
        assert g.any()
        assert not np.array_equal(g, second[name])

    layer.zero_grad()
    assert_same_bits(layer.backward(a), dx_a, "dE/dx is not added to")
    assert_same_bits(layer.backward(b), dx_b, "dE/dx is not added to")
    for name, g in gradients(layer).items():
        assert_close(g, np.float64(first[name]) + second[name], 100, name)

    # A second forward forgets the input of the first, not the gradients.
    layer(x[:4])
    layer.backward(np.zeros((4, 10), np.float32))
    for name, g in gradients(layer).items():
        assert_close(g, np.float64(first[name]) + second[name], 100, name)


def test_gradients_are_writable_views(rng):
    layer = nn.Linear(3, 2)
    p = layer.parameters()["weight"]
    layer(np.ones((1, 3)))
    grad = p.grad
    layer.backward(np.ones((1, 2)))
    assert (grad == 1).all()
    assert np.shares_memory(grad, layer.parameters()["weight"].grad)
    p.grad[...] = 5
    layer.backward(np.ones((1, 2)))
    assert (grad == 6).all()
    optim.SGD(lr=1.0).step(layer)
    p.data[...] = 0
    optim.SGD(lr=1.0).step(layer)
    assert (p.data == -6).all(), "step uses .grad and leaves it"


def test_trainer_step_does_not_depend_on_old_gradients(rng):
    x, labels = batch(rng)
    results = []
    for stale in (0, 1e6):
        dn.manual_seed(0)
        net = build(CONV_NET)
        for p in net.parameters().values():
            p.grad[...] = stale
        dn.Trainer(net, nn.CrossEntropyLoss(), optim.SGD(lr=0.1)).step(x, labels)
        results.append(weights(net))
    for name, w in results[0].items():
        assert_same_bits(results[1][name], w, name)


def test_several_trainers_and_shapes_share_a_network(rng):
    """Plans are per shape: going back and forth between batch sizes changes nothing."""
    net = build(CONV_NET)
    x, labels = batch(rng, 20)
    whole = net(x)
    for n in (1, 20, 7, 1, 20):
        assert_close(net(x[:n]), whole[:n], 10)
    trainers = [dn.Trainer(net, nn.CrossEntropyLoss(), optim.SGD(lr=0.05)) for _ in range(2)]
    losses = [trainers[i % 2].step(x[: 20 - i], labels[: 20 - i]) for i in range(10)]
    assert losses[-1] < losses[0]


# --- the same bits for any number of threads -------------------------------------------------------------------------

THREADS = (1, 2, 3, 5)

# Large enough that work is spread: hundreds of thousands of multiply-adds a layer.
DETERMINISTIC = {
    **{name: (specification, (24, 1, 16, 16)) for name, specification in NETS.items()},
    "dropout": (
        [
            ("Conv2d", (3, 32, 3, 1, 1)),
            ("ReLU", ()),
            ("Dropout", (0.3,)),
            ("Conv2d", (32, 33, 3, 1, 1)),
            ("MaxPool2d", (2,)),
            ("Flatten", ()),
            ("Dropout", (0.5,)),
            ("Linear", (33 * 100, 10)),
        ],
        (6, 3, 20, 20),
    ),
    "deep": (
        [
            ("Conv2d", (16, 64, 3, 1, "same")),
            ("SiLU", ()),
            ("Conv2d", (64, 64, 3, 2, 1, 1, 64)),
            ("Softmax", (1,)),
            ("Conv2d", (64, 65, 1)),
            ("GlobalAvgPool2d", ()),
            ("Linear", (65, 10)),
        ],
        (3, 16, 21, 19),
    ),
    "one image": (
        [
            ("Conv2d", (40, 64, 3, 1, "same")),
            ("ReLU", ()),
            ("Conv2d", (64, 24, 1)),
            ("AvgPool2d", (2,)),
            ("Conv2d", (24, 50, 5)),
            ("MaxPool2d", (2,)),
            ("Dropout", (0.1,)),
            ("Flatten", ()),
            ("Linear", (50 * 16, 10)),
        ],
        (1, 40, 24, 24),
    ),
    "wide": (
        [("Linear", (1030, 515)), ("GELU", ()), ("Dropout", (0.2,)), ("Linear", (515, 10)), ("LogSoftmax", ())],
        (130, 1030),
    ),
}


def train_with(threads, specification, shape, seed=7):
    """Everything a training makes, as named arrays."""
    rng = np.random.default_rng(0)
    x, labels = normal(rng, shape), rng.integers(0, 10, shape[0])
    with dn.threads(threads):
        assert dn.get_num_threads() == threads
        dn.manual_seed(seed)
        net, loss = build(specification), nn.CrossEntropyLoss()
        made = {f"initial {name}": w for name, w in weights(net).items()}
        made["y"] = net(x)
        made["loss"] = np.array(loss(made["y"], labels))
        made["dE/dy"] = loss.backward()
        made["dE/dx"] = net.backward(made["dE/dy"])
        made |= {f"dE/d{name}": g for name, g in gradients(net).items()}
        trainer = dn.Trainer(net, loss, optim.SGD(lr=0.05, momentum=0.9, weight_decay=1e-3))
        made["losses"] = np.array([trainer.step(x, labels) for _ in range(3)])
        made |= {f"trained {name}": w for name, w in weights(net).items()}
        made["predictions"] = net.predict(x, batch_size=5)
    return made


@pytest.mark.parametrize("channels", [121, 133])
def test_same_bits_where_threads_get_a_single_channel(channels):
    """Winograd's dE/dW is cut by channels for as many threads as there are, here down to a block of one."""
    rng = np.random.default_rng(0)
    conv = nn.Conv2d(channels, 24, 3, padding=1)
    x, dy = normal(rng, (1, channels, 28, 28)), normal(rng, (1, 24, 28, 28))
    made = []
    for threads in (1, 7, 9, 16):
        with dn.threads(threads):
            conv.zero_grad()
            conv(x)
            conv.backward(dy)
            made.append(conv.weight.grad.copy())
    for array in made[1:]:
        assert_same_bits(array, made[0])


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_same_bits_for_any_number_of_threads(name):
    want = train_with(THREADS[0], *DETERMINISTIC[name])
    assert all(np.isfinite(array).all() for array in want.values())
    for threads in (*THREADS[1:], 1):
        for key, array in train_with(threads, *DETERMINISTIC[name]).items():
            assert_same_bits(array, want[key], f"{key} at {threads} threads")
    other = train_with(2, *DETERMINISTIC[name], seed=8)
    assert not np.array_equal(other["y"], want["y"]), "the seed makes no difference"


def test_fit_is_the_same_for_any_number_of_threads(rng):
    x, labels = batch(rng, 70)
    results = []
    for threads in THREADS:
        with dn.threads(threads):
            dn.manual_seed(0)
            net = build(DETERMINISTIC["conv"][0])
            options = {"epochs": 2, "batch_size": 16, "seed": 3, "progress": False}
            history = net.fit(
                x, labels, loss=nn.CrossEntropyLoss(), optimizer=optim.SGD(lr=0.05, momentum=0.9), **options
            )
            results.append((history["loss"], weights(net)))
    for losses, trained in results[1:]:
        assert losses == results[0][0]
        for name, w in results[0][1].items():
            assert_same_bits(trained[name], w, name)


@pytest.mark.parametrize("fill", ["kaiming_normal", "kaiming_uniform", "xavier_normal", "xavier_uniform", "orthogonal"])
def test_initialisers_are_the_same_for_any_number_of_threads(fill):
    made = []
    for threads in THREADS:
        with dn.threads(threads):
            dn.manual_seed(5)
            net = nn.Sequential(nn.Conv2d(8, 130, 5), nn.Linear(300, 257))
            getattr(nn.init, fill)(net)
            made.append(weights(net))
    for name, w in made[0].items():
        for other in made[1:]:
            assert_same_bits(other[name], w, name)
