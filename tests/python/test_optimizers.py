"""Adam, AdamW and RMSprop against torch.optim; what they remember and refuse. SGD is in test_training."""

import json
import re
import threading

import numpy as np
import pytest

import deepnet as dn
from checks import assert_close, assert_same_bits, build, normal, run_python, seeded_rng, weights
from deepnet import nn, optim

CASES = {
    "adam": ("Adam", {}),
    "adam, decay": ("Adam", {"lr": 3e-3, "weight_decay": 0.05}),
    "adam, betas": ("Adam", {"betas": (0.5, 0.9), "eps": 1e-4}),
    "adam, amsgrad": ("Adam", {"amsgrad": True, "betas": (0.8, 0.7), "weight_decay": 0.01}),
    "adam, no averages": ("Adam", {"lr": 3e-3, "betas": (0.0, 0.0), "eps": 1e-2}),
    "adamw": ("AdamW", {}),
    "adamw, decay": ("AdamW", {"lr": 3e-3, "weight_decay": 0.5}),
    "adamw, amsgrad": ("AdamW", {"amsgrad": True, "betas": (0.8, 0.7)}),
    "rmsprop": ("RMSprop", {"lr": 1e-3}),
    "rmsprop, momentum": ("RMSprop", {"lr": 1e-3, "momentum": 0.8, "alpha": 0.9}),
    "rmsprop, centered": ("RMSprop", {"lr": 1e-3, "centered": True, "eps": 1e-3}),
    "rmsprop, all": (
        "RMSprop",
        {"lr": 1e-3, "alpha": 0.8, "eps": 1e-3, "weight_decay": 0.05, "momentum": 0.9, "centered": True},
    ),
}
each_case = pytest.mark.parametrize("case", CASES)

CONV_NET = [
    ("Conv2d", (1, 6, 3, 1, 1)),
    ("Tanh", ()),
    ("MaxPool2d", (2,)),
    ("Conv2d", (6, 8, 3, 2)),
    ("SiLU", ()),
    ("Flatten", ()),
    ("Linear", (32, 10)),
]
MLP = [
    ("Flatten", ()),
    ("Linear", (100, 31)),
    ("Sigmoid", ()),
    ("Linear", (31, 17)),
    ("ReLU", ()),
    ("Linear", (17, 10)),
]
NETS = {"conv": CONV_NET, "mlp": MLP}


def make(case, module=optim):
    kind, options = CASES[case]
    return getattr(module, kind)(**options)


def batch(rng):
    return normal(rng, (16, 1, 10, 10)), rng.integers(0, 10, 16)


def trained(case, steps, rows=301, cols=257):
    """A layer of more than one piece of work after steps along gradients of many sizes, some of them 0."""
    rng, opt, layer = seeded_rng(case), make(case), nn.Linear(cols, rows)
    for p in layer.parameters().values():
        p.data[...] = normal(rng, p.data.shape)
    sizes = 10.0 ** rng.integers(-6, 3, (rows, cols)) * (rng.random((rows, cols)) > 0.1)
    for _ in range(steps):
        layer.weight.grad[...] = sizes * normal(rng, (rows, cols))
        layer.bias.grad[...] = normal(rng, rows)
        opt.step(layer)
    return layer


# --- against PyTorch -------------------------------------------------------------------------------------------------


def check_steps(case, torch, steps=50, rows=19, cols=23):
    """Given the same gradients the weights differ by roundings alone."""
    rng = seeded_rng(case)
    layer, opt = nn.Linear(cols, rows, bias=False), make(case)
    w = torch.tensor(layer.weight.data.copy(), requires_grad=True)
    kind, options = CASES[case]
    theirs = getattr(torch.optim, kind)([w], **options)
    sizes = 10.0 ** rng.integers(-6, 3, (rows, cols)) * (rng.random((rows, cols)) > 0.1)
    for _ in range(steps):
        g = (sizes * normal(rng, (rows, cols))).astype(np.float32)
        layer.weight.grad[...] = g
        w.grad = torch.tensor(g)
        opt.step(layer)
        theirs.step()
    # An update is some lr in size, a weight below 1: its last bits are 6e-8, and each step may round one.
    np.testing.assert_allclose(layer.weight.data, w.detach().numpy(), rtol=1e-5, atol=3e-7)


@each_case
def test_fifty_steps_on_the_same_gradients(case, torch):
    check_steps(case, torch)


ON_ISA = """
import torch, deepnet as dn, test_optimizers
for case in test_optimizers.CASES:
    test_optimizers.check_steps(case, torch)
print(dn.active_isa())
"""


@pytest.mark.parametrize("isa", dn.available_isas())
def test_every_isa_agrees_with_pytorch(isa, torch):
    assert run_python(ON_ISA, DEEPNET_ISA=isa, timeout=120).split() == [isa]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("steps", [5, 50])
@each_case
def test_training_lands_on_pytorchs_weights(case, steps, net, torch, rng):
    ours, theirs = build(NETS[net]), build(NETS[net], torch.nn)
    theirs.load_state_dict({name: torch.from_numpy(w) for name, w in ours.state_dict().items()})
    trainer, loss = dn.Trainer(ours, nn.CrossEntropyLoss(), make(case)), torch.nn.CrossEntropyLoss()
    kind, options = CASES[case]
    optimizer = getattr(torch.optim, kind)(theirs.parameters(), **options)
    start = weights(ours)
    for _ in range(steps):
        x, labels = batch(rng)
        e = trainer.step(x, labels)
        optimizer.zero_grad()
        e_t = loss(theirs(torch.from_numpy(x)), torch.from_numpy(labels))
        e_t.backward()
        optimizer.step()
        assert e == pytest.approx(e_t.item(), rel=1e-4)
    for name, w in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[name], w.numpy(), rtol=1e-3, atol=1e-5, err_msg=name)
        assert np.abs(ours.state_dict()[name] - start[name]).max() > 1e-3, f"{name} was not trained"


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "RMSprop"])
def test_defaults_are_pytorchs(kind, torch):
    ours, theirs = getattr(optim, kind)(), getattr(torch.optim, kind)([torch.zeros(1)]).defaults
    settings = [name for name in dir(ours) if not name.startswith("_") and name not in ("kind", "step")]
    assert len(settings) >= 5
    for name in settings:
        assert getattr(ours, name) == theirs[name], name


# --- the same bits ---------------------------------------------------------------------------------------------------


@each_case
def test_same_bits_for_any_number_of_threads(case):
    made = []
    for threads in (1, 2, 3, 5):
        with dn.threads(threads):
            made.append(weights(trained(case, 3)))
    for other in made[1:]:
        for name, w in made[0].items():
            assert np.isfinite(w).all()
            assert_same_bits(other[name], w, name)


@each_case
def test_training_goes_on_where_it_was(case, tmp_path, rng):
    x, y = normal(rng, (32, 4)), rng.integers(0, 2, 32)
    net, optimizer = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), make(case)
    options = {"progress": False, "epochs": 2, "batch_size": 10}
    net.fit(x, y, optimizer=optimizer, **options)
    net.save(tmp_path / "m", optimizer=optimizer)
    net.fit(x, y, optimizer=optimizer, **options)

    other, resumed = dn.load(tmp_path / "m"), make(case)
    dn.load_optimizer_state(other, resumed, tmp_path / "m")
    other.fit(x, y, optimizer=resumed, **options)
    for name, w in weights(net).items():
        assert_same_bits(weights(other)[name], w, name)

    fresh = dn.load(tmp_path / "m")
    fresh.fit(x, y, optimizer=make(case), **options)
    if case != "adam, no averages":
        assert not np.array_equal(weights(fresh)["0.weight"], weights(net)["0.weight"]), "the state makes no difference"


@each_case
def test_file_has_pytorchs_state(case, tmp_path, torch):
    """Names and values, the number of steps among them."""
    rng, net, opt = seeded_rng(case), nn.Sequential(nn.Linear(7, 5)), make(case)
    w = torch.tensor(net.state_dict()["0.weight"], requires_grad=True)
    kind, options = CASES[case]
    theirs = getattr(torch.optim, kind)([w], **options)
    for _ in range(3):
        g = normal(rng, (5, 7))
        net.parameters()["0.weight"].grad[...] = g
        w.grad = torch.tensor(g)
        opt.step(net)
        theirs.step()
    net.save(tmp_path / "m", optimizer=opt)
    content = (tmp_path / "m").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert json.loads(header["__metadata__"]["optimizer"])["kind"] == kind
    prefix, found = "optimizer.0.weight.", {}
    for name, entry in header.items():
        if name.startswith(prefix):
            begin, end = entry["data_offsets"]
            found[name[len(prefix) :]] = np.frombuffer(content[8 + size + begin : 8 + size + end], np.float32)
    want = {name: value.numpy().ravel() for name, value in theirs.state[w].items()}
    assert found.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_state_of_another_optimizer_is_refused(tmp_path):
    net, opt = nn.Sequential(nn.Linear(3, 2)), optim.Adam()
    net.parameters()["0.weight"].grad[...] = 1
    opt.step(net)
    net.save(tmp_path / "m", optimizer=opt)
    with pytest.raises(ValueError, match="expected the state of AdamW, got that of Adam"):
        dn.load_optimizer_state(net, optim.AdamW(), tmp_path / "m")
    with pytest.raises(ValueError, match=r"^\[Adam\] expected buffers .*max_exp_avg_sq"):
        dn.load_optimizer_state(net, optim.Adam(amsgrad=True), tmp_path / "m")


# --- use -------------------------------------------------------------------------------------------------------------


def test_one_optimizer_in_several_threads():
    """Each thread trains a layer of its own; all end where one alone does."""
    opt = optim.Adam(lr=0.01)

    def train(layer, optimizer):
        for p in layer.parameters().values():
            p.data[...] = 1
        for t in range(200):
            layer.weight.grad[...] = np.cos(t + np.arange(12).reshape(3, 4))
            optimizer.step(layer)

    alone, layers = nn.Linear(4, 3), [nn.Linear(4, 3) for _ in range(4)]
    train(alone, optim.Adam(lr=0.01))
    threads = [threading.Thread(target=train, args=(layer, opt)) for layer in layers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for layer in layers:
        assert_same_bits(layer.weight.data, alone.weight.data)


@pytest.mark.parametrize("rows", [1, 7, 16, 17])
@pytest.mark.parametrize("kind", ["SGD", "Adam", "RMSprop"])
def test_small_batches_do_not_depend_on_who_looks_at_gradients(kind, rows, rng):
    """With few rows a Linear's gradient may be kept as its factors until somebody asks for it."""
    specification = [("Linear", (5000, 37)), ("Tanh", ()), ("Linear", (37, 4))]
    looked_at, left_alone = build(specification), build(specification)
    left_alone.load_state_dict(looked_at.state_dict())
    x, target = normal(rng, (rows, 5000)), normal(rng, (rows, 4))
    trainers = [dn.Trainer(net, nn.MSELoss(), getattr(optim, kind)(lr=1e-3)) for net in (looked_at, left_alone)]
    for step in range(3):
        for trainer in trainers:
            trainer.step(x, target)
        grad = looked_at[0].weight.grad.copy()
        if step == 1:
            assert_same_bits(left_alone[0].weight.grad, grad, "dE/dW at first sight")
    assert_same_bits(left_alone[0].weight.grad, grad, "dE/dW in its memory")
    for name, weight in weights(looked_at).items():
        assert_same_bits(weights(left_alone)[name], weight, name)


def test_gradients_of_small_batches_add_up(torch, rng):
    layer = nn.Linear(40, 30)
    twin = torch.nn.Linear(40, 30)
    for _ in range(2):
        x, dy = normal(rng, (3, 40)), normal(rng, (3, 30))
        layer(x)
        layer.backward(dy)
        twin(torch.from_numpy(x)).backward(torch.from_numpy(dy))
    assert_close(layer.weight.grad, twin.weight.grad.numpy(), length=6)
    layer.zero_grad()
    np.testing.assert_array_equal(layer.weight.grad, 0)


def test_rate_follows_a_schedule(torch):
    layer, opt = nn.Linear(3, 2, bias=False), optim.AdamW(weight_decay=0.1)
    w = torch.tensor(layer.weight.data.copy(), requires_grad=True)
    theirs = torch.optim.AdamW([w], weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(theirs, 0.5)
    for t in range(6):
        layer.weight.grad[...] = t - 2.5
        w.grad = torch.full((2, 3), t - 2.5)
        opt.step(layer)
        theirs.step()
        schedule.step()
        opt.lr *= 0.5
    np.testing.assert_allclose(layer.weight.data, w.detach().numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_fit_takes_names(name, rng):
    net = nn.Sequential(nn.Linear(4, 2))
    start = weights(net)["0.weight"]
    net.fit(normal(rng, (8, 4)), rng.integers(0, 2, 8), optimizer=name, epochs=1, progress=False)
    assert not np.array_equal(weights(net)["0.weight"], start)
    with pytest.raises(
        ValueError, match=r"^\[fit\] expected optimizer .*'adam', 'adamw', 'rmsprop', 'sgd'.* got 'adem'"
    ):
        net.fit(normal(rng, (8, 4)), rng.integers(0, 2, 8), optimizer="adem", progress=False)


def test_classes():
    assert isinstance(optim.AdamW(), optim.Adam)
    assert isinstance(optim.RMSprop(), optim.Optimizer)
    assert repr(optim.AdamW()) == "AdamW(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, amsgrad=False)"
    assert optim.Adam(np.float32(0.5), [0, np.float64(0.5)], amsgrad=np.True_).betas == (0.0, 0.5)


BAD_VALUES = {
    "Adam": [
        ({"lr": -1}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"betas": (1.0, 0.9)}, "betas[0]"),
        ({"betas": (0.9, -0.1)}, "betas[1]"),
        ({"eps": -1e-8}, "eps"),
        ({"eps": float("inf")}, "eps"),
        ({"weight_decay": -1}, "weight_decay"),
    ],
    "RMSprop": [
        ({"lr": float("inf")}, "lr"),
        ({"alpha": 1.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"eps": -1}, "eps"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"momentum": -0.5}, "momentum"),
    ],
}
BAD_VALUES["AdamW"] = BAD_VALUES["Adam"]
BAD_TYPES = {
    "SGD": [{"lr": "fast"}, {"lr": 0.1, "momentum": None}, {"lr": 0.1, "nesterov": 1}],
    "Adam": [
        {"lr": "fast"},
        {"betas": 0.9},
        {"betas": "ab"},
        {"betas": (0.9,)},
        {"betas": (0.9, 0.99, 0.999)},
        {"betas": (0.9, None)},
        {"eps": None},
        {"weight_decay": [0.1]},
        {"amsgrad": "yes"},
        {"amsgrad": 1},
    ],
    "RMSprop": [{"lr": None}, {"alpha": "0.9"}, {"momentum": (1,)}, {"centered": None}],
}
BAD_TYPES["AdamW"] = BAD_TYPES["Adam"]


def bad(table):
    return [pytest.param(kind, case, id=f"{kind} {case}") for kind, cases in table.items() for case in cases]


@pytest.mark.parametrize(("kind", "case"), bad(BAD_VALUES))
def test_values_out_of_range(kind, case):
    """At once as arguments; as attributes at the step, which changes nothing."""
    (options, name), layer = case, nn.Linear(2, 2)
    message = rf"^\[{kind}\] expected .*{re.escape(name)} .*, got "
    with pytest.raises(ValueError, match=message):
        getattr(optim, kind)(**options)
    opt = getattr(optim, kind)()
    layer.weight.grad[...] = 1
    before = weights(layer)
    for setting, value in options.items():
        setattr(opt, setting, value)
    with pytest.raises(ValueError, match=message):
        opt.step(layer)
    assert_same_bits(layer.weight.data, before["weight"])


@pytest.mark.parametrize(("kind", "options"), bad(BAD_TYPES))
def test_values_of_wrong_type(kind, options):
    """As arguments and as attributes, which then keep their value."""
    *_, (name, value) = options.items()
    message = rf"^\[{kind}\] expected {name}.*, got "
    with pytest.raises(TypeError, match=message):
        getattr(optim, kind)(**options)
    opt = getattr(optim, kind)(lr=0.1)
    before = getattr(opt, name)
    with pytest.raises(TypeError, match=message):
        setattr(opt, name, value)
    assert getattr(opt, name) == before
