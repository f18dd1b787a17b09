"""Instruction sets, threads, processes, and the floating-point state that calls leave behind."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import deepnet as dn
from checks import assert_same_bits, attempt_python, normal, run_python, weights
from deepnet import nn, optim

NET = """
import os, signal, sys, threading, time
import numpy as np
import deepnet as dn
from deepnet import nn, optim
dn.set_num_threads(4)
dn.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 64, 10))
rng = np.random.default_rng(0)
x, labels = rng.standard_normal((32, 3, 16, 16)).astype(np.float32), rng.integers(0, 10, 32)
trainer = dn.Trainer(net, nn.CrossEntropyLoss(), optim.SGD(lr=0.01))
"""


def conv_net():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 64, 10)
    )


# --- instruction sets and configuration ------------------------------------------------------------------------------


def test_unknown_isa_is_refused_with_a_list():
    result = attempt_python("import deepnet as dn; dn.nn.ReLU()([1.0]); print(dn.active_isa())", DEEPNET_ISA="bogus")
    assert result.returncode == 1, "an exception, not a crash"
    last = result.stderr.strip().splitlines()[-1]
    assert "bogus" in last
    assert "DEEPNET_ISA" in last
    assert "generic" in last
    assert "Error" in last


@pytest.mark.parametrize("isa", dn.available_isas())
def test_isa_can_be_forced(isa):
    assert run_python("import deepnet as dn; print(dn.active_isa())", DEEPNET_ISA=isa).strip() == isa


def test_isas_agree_within_rounding():
    code = NET + "print(*[trainer.step(x, labels) for _ in range(5)])"
    losses = [np.array(run_python(code, DEEPNET_ISA=isa).split(), float) for isa in dn.available_isas()]
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-4)


def test_show_config_tells_isa_and_threads(capfd):
    dn.show_config()
    printed = capfd.readouterr().out
    assert dn.active_isa() in printed
    assert "threads" in printed.lower()


@pytest.mark.timing
def test_import_takes_under_25_ms():
    """Beyond numpy. The quickest of ten, since other programs can only add to it."""
    code = "import time, numpy; t = time.perf_counter(); import deepnet; print(time.perf_counter() - t)"
    assert min(float(run_python(code)) for _ in range(10)) < 0.025


# --- threads ---------------------------------------------------------------------------------------------------------


def test_thread_count_can_be_set_and_scoped():
    before = dn.get_num_threads()
    assert before >= 1
    with dn.threads(3):
        assert dn.get_num_threads() == 3
        with dn.threads(1):
            assert dn.get_num_threads() == 1
        assert dn.get_num_threads() == 3
    with pytest.raises(LookupError), dn.threads(2):
        raise LookupError
    assert dn.get_num_threads() == before
    try:
        dn.set_num_threads(5)
        assert dn.get_num_threads() == 5
    finally:
        dn.set_num_threads(before)


def test_thread_scope_is_one_threads_own():
    before = dn.get_num_threads()
    with dn.threads(before + 2), ThreadPoolExecutor(1) as pool:
        assert pool.submit(dn.get_num_threads).result() == before


@pytest.mark.parametrize(("variable", "limit"), [("OMP_NUM_THREADS", "1")])
def test_default_thread_count_follows_the_environment(variable, limit):
    assert run_python("import deepnet as dn; print(dn.get_num_threads())", **{variable: limit}).strip() == limit


@pytest.mark.parametrize("call", ["predict", "forward"])
def test_one_network_in_several_threads(call, rng):
    """Every thread gets the answer to its own question, bit for bit."""
    net = conv_net()
    net.eval()
    inputs = [normal(rng, (1 + i % 5, 3, 16, 16)) for i in range(8)]
    answers = [net(x) for x in inputs]
    run = net.predict if call == "predict" else net

    def ask(i):
        for _ in range(30):
            assert_same_bits(run(inputs[i]), answers[i])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


def test_networks_train_in_several_threads_as_they_do_alone(rng):
    x, labels = normal(rng, (16, 3, 16, 16)), rng.integers(0, 10, 16)
    start = conv_net().state_dict()

    def train(_):
        net = conv_net()
        net.load_state_dict(start)
        trainer = dn.Trainer(net, nn.CrossEntropyLoss(), optim.SGD(lr=0.05, momentum=0.9))
        for _ in range(10):
            trainer.step(x, labels)
        return weights(net)

    alone = train(0)
    with ThreadPoolExecutor(4) as pool:
        for trained in pool.map(train, range(4)):
            for name, w in alone.items():
                assert_same_bits(trained[name], w, name)


def test_one_network_trained_and_looked_at_by_several_threads_never_crashes(rng):
    """What it learns is then anybody's guess; gradients of small batches are made when they are looked at."""
    net = nn.Sequential(nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 10))
    batches = [(normal(rng, (n, 300)), normal(rng, (n, 10))) for n in (1, 4, 16, 2)]

    def work(i):
        x, y = batches[i % 4]
        trainer = dn.Trainer(net, nn.MSELoss(), optim.SGD(lr=0.0))
        for _ in range(100):
            if i < 4:
                trainer.step(x, y)
            else:
                assert net[0].weight.grad.shape == (200, 300)
                net.zero_grad()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


def test_gil_is_released_during_native_work(rng):
    net = nn.Conv2d(64, 64, 3, padding=1)
    x = normal(rng, (32, 64, 56, 56))
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        with dn.threads(1):
            begin = time.perf_counter()
            net(x)
            end = time.perf_counter()
    finally:
        stop.set()
        thread.join()
    inside = [t for t in ticks if begin + 0.003 < t < end - 0.003]
    assert inside or end - begin < 0.02, f"no other thread ran during {end - begin:.3f} s"


def test_arrays_changed_by_another_thread_never_crash():
    """Labels jump out of range and inputs to NaN while they are read: any answer or error will do, a crash will not."""
    code = (
        NET
        + """
stop = False
def scribble():
    while not stop:
        labels[:] = 2**62
        x[:] = np.nan
        labels[:] = -(2**62)
        labels[:] = 1
        x[:] = 1
thread = threading.Thread(target=scribble)
thread.start()
loss, pool, until = nn.CrossEntropyLoss(), nn.MaxPool2d(3), time.monotonic() + 1.5
logits = np.zeros((32, 10), np.float32)
seen = set()
while time.monotonic() < until:
    for attempt in (
        lambda: trainer.step(x, labels),
        lambda: (loss(logits, labels), loss.backward()),
        lambda: pool.backward(pool(x)),
        lambda: net.backward(net(x)),
        lambda: dn._core.count_correct(logits, labels),
    ):
        try:
            attempt()
        except (ValueError, FloatingPointError) as error:
            seen.add(type(error).__name__)
stop = True
thread.join()
print("alive", *sorted(seen))
"""
    )
    assert run_python(code).startswith("alive")


# --- processes -------------------------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@needs_fork
def test_fork_after_use():
    """The pool's threads do not survive a fork: the child must work alone, give the same bits and exit."""
    code = (
        NET
        + """
net.eval()
want = net(x).tobytes()
net.train()
trainer.step(x, labels)
weights = {name: p.data.copy() for name, p in net.parameters().items()}
pid = os.fork()
if pid == 0:
    trainer.step(x, labels)
    net.eval()
    net(x)
    sys.stdout.write("".join(p.data.tobytes().hex()[:64] for p in net.parameters().values()))
    sys.stdout.flush()
    os._exit(7)
until = time.monotonic() + 20
while True:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        break
    if time.monotonic() > until:
        os.kill(pid, signal.SIGKILL)
        raise SystemExit("the child hangs")
    time.sleep(0.01)
assert os.waitstatus_to_exitcode(status) == 7, status
print()
trainer.step(x, labels)
print("".join(p.data.tobytes().hex()[:64] for p in net.parameters().values()))
"""
    )
    child, parent = run_python(code).split()
    assert child == parent


@needs_fork
def test_pool_of_forked_processes():
    code = (
        NET
        + """
import multiprocessing
def work(i):
    return net.predict(x[: i + 1]).sum(dtype=np.float64)
want = [work(i) for i in range(4)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(work, range(4)) == want
"""
    )
    run_python(code, timeout=30)


@pytest.mark.parametrize("work", ["net.fit(x, labels, epochs=10**6, progress=False)", "net.predict(x)", "net(x)"])
def test_the_process_may_end_while_another_thread_works(work):
    """Python ends such a thread as it asks for the GIL; the exit status stays the program's own."""
    code = f"""
import threading, time
import numpy as np
from deepnet import nn

class Same(nn.Layer):
    def forward(self, x):
        return x * 1.0

    def backward(self, dy):
        return dy * 1.0

net = nn.Sequential(nn.Linear(20, 64), Same(), nn.Linear(64, 3))
x, labels = np.ones((500, 20)), np.zeros(500, int)

def work():
    while True:
        {work}

threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
raise SystemExit(3)
"""
    result = attempt_python(code)
    assert (result.returncode, result.stderr) == (3, "")


def test_interrupt_leaves_a_usable_network():
    code = (
        NET
        + """
import _thread
before = net.state_dict()
threading.Timer(0.5, _thread.interrupt_main).start()
try:
    net.fit(x, labels, loss=nn.CrossEntropyLoss(), optimizer=optim.SGD(lr=0.01), epochs=10**6, progress=False)
except KeyboardInterrupt:
    pass
assert np.isfinite(net.predict(x)).all() and np.isfinite(trainer.step(x, labels))
assert not np.array_equal(net.state_dict()["0.weight"], before["0.weight"])
"""
    )
    run_python(code, timeout=30)


# --- flush-to-zero is the library's own business ---------------------------------------------------------------------

DENORMAL = np.float32(1e-40)


def denormals_live():
    """Whether this thread's arithmetic still has denormal numbers, single and double, scalar and vector."""
    single, double = np.full(64, DENORMAL), np.full(64, 1e-310)
    return (single * np.float32(0.5) > 0).all() and (double * 0.5 > 0).all() and 1e-310 * 0.5 > 0


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_denormals_live_on_after_calls(threads, rng):
    assert denormals_live()
    net, x, labels = conv_net(), normal(rng, (16, 3, 16, 16)), rng.integers(0, 10, 16)
    loss = nn.CrossEntropyLoss()
    trainer = dn.Trainer(net, loss, optim.SGD(lr=0.01))
    with dn.threads(threads):
        for call in (lambda: net(x), lambda: net.backward(np.ones((16, 10))), lambda: trainer.step(x, labels),
                     lambda: loss(net(x), labels), lambda: net.predict(x), lambda: dn.image.sobel(x)):  # fmt: skip
            call()
            assert denormals_live()


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_gradients_have_the_same_bits_where_denormals_are_flushed(rows):
    """Those of few rows are made when they are read, which flushes as the step did."""

    def gradient(threads):
        layer = nn.Linear(512, 512, bias=False)
        layer.weight.data[...] = 0
        with dn.threads(threads):
            dn.Trainer(layer, nn.MSELoss(), optim.SGD(lr=0.1)).step(
                np.full((rows, 512), 1e-17), np.full((rows, 512), 1e-20)
            )
            return layer.weight.grad

    assert_same_bits(gradient(1), gradient(2))
    assert denormals_live()


def test_denormals_live_on_after_errors(rng):
    class Fails(nn.Layer):
        def forward(self, x):
            raise LookupError

        def backward(self, dy):
            return dy

    net = nn.Sequential(nn.Linear(4, 4), Fails())
    with pytest.raises(LookupError):
        net(np.ones((2, 4)))
    assert denormals_live()
    with pytest.raises(dn.ShapeError):
        net(np.ones((2, 5)))
    assert denormals_live()


@pytest.mark.parametrize(
    "call",
    [
        "_core.init_orthogonal(net)",
        "nn.init.kaiming_normal(net)",
        "dn.image.im2col(image, 3)",
        "dn.image.col2im(columns, (126, 126), 3)",
        "_core.count_correct(y, labels)",
        "net.save(path, optimizer)",
        "dn.load_optimizer_state(net, optimizer, path)",
    ],
)
def test_other_threads_run_meanwhile(call, tmp_path):
    """Native work releases the GIL: a thread that asks for nothing but a turn gets one during it."""
    code = f"""
import sys, threading, time
import numpy as np
import deepnet as dn
from deepnet import _core, nn, optim
net, optimizer, path = nn.Linear(300, 300), optim.SGD(lr=0.1, momentum=0.9), {str(tmp_path / "m.safetensors")!r}
image, labels = np.ones((8, 4, 126, 126), np.float32), np.zeros(100000, np.int64)
columns, y = dn.image.im2col(image, 3), np.zeros((100000, 10), np.float32)
net.save(path, optimizer)
turns, stop = 0, False
def take_turns():
    global turns
    while not stop:
        turns += 1
        time.sleep(1e-4)
thread = threading.Thread(target=take_turns)
thread.start()
sys.setswitchinterval(30)  # nobody is made to give the GIL away
before, begin = turns, time.monotonic()
while turns == before and time.monotonic() < begin + 5:
    {call}
print(turns > before)
stop = True
"""
    assert run_python(code).strip() == "True"
