"""dn.image: kernels sliding over arrays, against SciPy, PyTorch and the definition."""

import numpy as np
import pytest

import deepnet as dn
import reference
from checks import assert_close, assert_same_bits, integers, normal
from deepnet import image, nn

# --- Gaussian --------------------------------------------------------------------------------------------------------


def test_gaussian_kernel_of_the_lecture():
    kernel = image.gaussian_kernel(7, sigma=0.84089642)
    assert kernel.shape == (7, 7)
    assert kernel.dtype == np.float32
    assert f"{kernel[3, 3]:.8f}" == "0.22508352"
    assert [f"{kernel[i, j]:.8f}" for i in (0, 6) for j in (0, 6)] == ["0.00000067"] * 4


@pytest.mark.parametrize(("size", "sigma"), [(1, 1.0), (3, 0.5), (5, 1.0), (7, 0.84089642), (9, 2.5), (31, 4.0)])
def test_gaussian_kernel(size, sigma):
    offset = np.arange(size) - size // 2
    want = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * sigma**2))
    kernel = image.gaussian_kernel(size, sigma=sigma)
    assert_close(kernel, want / want.sum())
    assert np.array_equal(kernel, kernel.T)
    assert np.array_equal(kernel, kernel[::-1])
    assert np.float64(kernel).sum() == pytest.approx(1, abs=1e-6)


def test_gaussian_kernel_defaults():
    assert np.array_equal(image.gaussian_kernel(sigma=0.84089642), image.gaussian_kernel(7, 0.84089642))


# --- convolve --------------------------------------------------------------------------------------------------------

ARRAYS = [(1, 1), (3, 3), (5, 8), (9, 9), (16, 17), (33, 31), (64, 65)]
KERNELS = [(1, 1), (3, 3), (1, 5), (5, 1), (7, 7), (3, 5)]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("shape", ARRAYS, ids=str)
def test_convolve_slides_the_kernel_as_printed(shape, kernel, ndimage, signal, rng):
    a, k = normal(rng, shape), normal(rng, kernel)
    wide_a, wide_k = np.float64(a), np.float64(k)
    same = image.convolve(a, k)
    assert_close(same, ndimage.correlate(wide_a, wide_k, mode="constant"), k.size)
    assert_close(image.convolve(a, k, padding="same"), same, k.size)
    if kernel[0] <= shape[0] and kernel[1] <= shape[1]:
        assert_close(image.convolve(a, k, padding="valid"), signal.correlate2d(wide_a, wide_k, mode="valid"), k.size)


def test_denormals_have_the_same_bits_on_any_number_of_threads(rng):
    """Threads flush them to zero, so the caller's must: also where the work is too little for threads."""
    a = (normal(rng, (300, 400)) * 1e-39).astype(np.float32)
    k = np.ones((3, 3), np.float32)

    def results():
        columns = image.im2col(a[None, None], 3, padding=1)
        return image.convolve(a, k), *image.sobel(a), image.col2im(columns, a.shape, 3, padding=1)

    with dn.threads(1):
        alone = results()
    with dn.threads(4):
        for got, want in zip(results(), alone, strict=True):
            assert_same_bits(got, want)
    assert_same_bits(image.convolve(a[:9, :9], k)[:8, :8], image.convolve(a, k)[:8, :8])


@pytest.mark.parametrize("kernel", [(2, 2), (4, 3), (2, 7)], ids=str)
def test_convolve_with_even_kernels(kernel, signal, rng):
    a, k = normal(rng, (11, 13)), normal(rng, kernel)
    assert_close(
        image.convolve(a, k, padding="valid"), signal.correlate2d(np.float64(a), np.float64(k), "valid"), k.size
    )
    assert image.convolve(a, k, padding="same").shape == a.shape


def test_convolve_of_one_cell_prints_the_kernel_turned(rng):
    """Sliding without a flip: the answer to a single 1 is the kernel, rotated half a turn."""
    a, k = np.zeros((5, 5)), np.arange(9).reshape(3, 3)
    a[2, 2] = 1
    assert np.array_equal(image.convolve(a, k)[1:4, 1:4], k[::-1, ::-1])
    assert np.array_equal(image.convolve(k, k, padding="valid"), [[(k * k).sum()]])


def test_convolve_of_stacked_planes(rng):
    a, k = normal(rng, (2, 3, 9, 11)), normal(rng, (3, 3))
    for padding in ("same", "valid"):
        out = image.convolve(a, k, padding)
        for i in range(2):
            for j in range(3):
                assert_close(out[i, j], image.convolve(a[i, j], k, padding), 9)


def test_convolve_takes_any_real_array(rng):
    a = rng.integers(0, 255, (8, 9), dtype=np.uint8)
    k = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]])
    want = image.convolve(a.astype(np.float32), k.astype(np.float32))
    for other in (a, a.astype(">f8"), np.asfortranarray(a), a.tolist()):
        assert np.array_equal(image.convolve(other, k), want)
    assert np.array_equal(image.convolve(a[::-1, ::2], k), image.convolve(a[::-1, ::2].copy(), k))


# --- Sobel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 3), (8, 9), (17, 33), (2, 3, 12, 11)], ids=str)
@pytest.mark.parametrize("kind", ["real", "integer"])
def test_sobel_is_scipys(shape, kind, ndimage, rng):
    a = normal(rng, shape) if kind == "real" else integers(rng, shape)
    g_x = ndimage.sobel(np.float64(a), axis=-1, mode="nearest")
    g_y = ndimage.sobel(np.float64(a), axis=-2, mode="nearest")
    if len(shape) == 4:  # scipy smooths along every other axis: here plane by plane
        planes = np.float64(a).reshape(-1, *shape[2:])
        g_x = np.stack([ndimage.sobel(p, axis=1, mode="nearest") for p in planes]).reshape(shape)
        g_y = np.stack([ndimage.sobel(p, axis=0, mode="nearest") for p in planes]).reshape(shape)
    magnitude, angle = image.sobel(a)
    assert_close(magnitude, np.hypot(g_x, g_y), 9, "magnitude")
    assert angle.dtype == np.float32
    assert angle.shape == shape
    assert (np.abs(angle) <= np.float32(np.pi)).all()
    turn = np.angle(np.exp(1j * (angle - np.arctan2(g_y, g_x))))  # pi and -pi are the same direction
    assert (np.abs(turn) * np.hypot(g_x, g_y)).max() <= 1e-5 * max(1, np.abs(a).max())


def test_sobel_of_a_ramp_and_of_edges():
    columns = np.tile(np.arange(6.0), (5, 1))
    for a, want in [(columns, 0), (-columns, np.pi), (columns.T, np.pi / 2), (-columns.T, -np.pi / 2)]:
        magnitude, angle = image.sobel(a)
        assert (magnitude[1:-1, 1:-1] == 8).all()
        assert np.allclose(np.cos(angle), np.cos(want), atol=1e-6)
        assert np.allclose(np.sin(angle), np.sin(want), atol=1e-6)
    magnitude, _ = image.sobel(np.full((4, 4), 7.0))
    assert not magnitude.any(), "edges repeat outwards: a constant has no gradient"


# --- the definition: im2col ------------------------------------------------------------------------------------------

COLUMNS = [
    ((1, 1, 1, 1), 1, {}),
    ((1, 1, 3, 3), 3, {}),
    ((2, 3, 8, 9), 3, {}),
    ((2, 3, 9, 7), (2, 3), {"stride": 2}),
    ((1, 4, 9, 9), 3, {"padding": 2, "stride": 2}),
    ((1, 2, 10, 12), (3, 2), {"dilation": (2, 3), "padding": (1, 2)}),
    ((3, 1, 7, 17), 5, {"padding": 2}),
    ((1, 17, 6, 5), 1, {"stride": (2, 1)}),
    ((2, 2, 11, 11), 2, {"stride": 3}),
    ((1, 3, 5, 5), 5, {"padding": 4}),
]
each_columns = pytest.mark.parametrize(("shape", "kernel", "options"), COLUMNS, ids=str)


@each_columns
def test_im2col_and_col2im_are_unfold_and_fold(shape, kernel, options, torch, rng):
    x = normal(rng, shape)
    columns = image.im2col(x, kernel, **options)
    assert np.array_equal(columns, reference.im2col(x, kernel, **options))
    unfolded = torch.nn.functional.unfold(torch.from_numpy(x), kernel, **options)
    assert np.array_equal(columns, unfolded.numpy())
    back = integers(rng, columns.shape)
    folded = torch.nn.functional.fold(torch.from_numpy(back), shape[2:], kernel, **options)
    assert np.array_equal(image.col2im(back, shape[2:], kernel, **options), folded.numpy())


@each_columns
def test_col2im_is_the_adjoint_of_im2col(shape, kernel, options, rng):
    """<im2col x, c> = <x, col2im c>, exactly on whole numbers."""
    x = integers(rng, shape)
    columns = image.im2col(x, kernel, **options)
    c = integers(rng, columns.shape)
    back = image.col2im(c, shape[2:], kernel, **options)
    assert back.shape == shape
    assert np.vdot(np.float64(columns), c) == np.vdot(np.float64(x), back)


def test_convolution_is_weight_times_columns(rng):
    layer = nn.Conv2d(3, 5, (3, 2), stride=2, padding=1, dilation=(1, 2), bias=False)
    x = normal(rng, (2, 3, 9, 10))
    columns = image.im2col(x, (3, 2), stride=2, padding=1, dilation=(1, 2))
    weight = layer.parameters()["weight"].data
    y = layer(x)
    assert_close(y, (np.float64(weight.reshape(5, -1)) @ columns).reshape(y.shape), 18)


def test_nine_shared_weights_make_a_six_by_six_filter(rng):
    """The lecture's example: a 9x9 array, padded by 2, a 3x3 kernel, stride 2."""
    layer = nn.Conv2d(1, 1, 3, stride=2, padding=2, bias=False)
    assert sum(p.data.size for p in layer.parameters().values()) == 9
    x = normal(rng, (1, 1, 9, 9))
    y = layer(x)
    assert y.shape == (1, 1, 6, 6)
    padded, weight = np.pad(np.float64(x[0, 0]), 2), layer.parameters()["weight"].data[0, 0]
    for p in range(6):
        for q in range(6):
            assert y[0, 0, p, q] == pytest.approx(
                (padded[2 * p : 2 * p + 3, 2 * q : 2 * q + 3] * weight).sum(), abs=1e-5
            )


# --- neighborhoods ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 5])
def test_neighborhood_of_the_median(size, ndimage, rng):
    a = normal(rng, (12, 15))
    out = image.neighborhood(a, lambda cells: np.median(cells, axis=-1), size)
    assert out.shape == a.shape
    assert out.dtype == np.float32
    inside = slice(size // 2, -(size // 2) or None)
    assert np.array_equal(out[inside, inside], ndimage.median_filter(a, size)[inside, inside])


def test_neighborhood_hands_over_cells_in_reading_order(rng):
    a = np.arange(30, dtype=np.float32).reshape(5, 6)
    seen = []

    def take(cells):
        seen.append(cells.shape)
        return cells[..., 0]

    out = image.neighborhood(a, take, 3)
    assert np.array_equal(out[1:-1, 1:-1], a[:-2, :-2]), "cell 0 is the one above and to the left"
    assert seen == [(5, 6, 9)], "one call with all neighborhoods"
    out = image.neighborhood(a, lambda cells: cells[..., 5], 3)
    assert np.array_equal(out[:, :-1], a[:, 1:]), "cell 5 is the one to the right"


def test_neighborhood_of_stacked_planes(rng):
    a = normal(rng, (2, 3, 6, 7))
    out = image.neighborhood(a, lambda cells: cells.max(axis=-1), 3)
    assert out.shape == a.shape
    for i in range(2):
        assert np.array_equal(out[i], image.neighborhood(a[i], lambda cells: cells.max(axis=-1), 3))


def test_neighborhood_of_no_planes():
    a = np.zeros((0, 4, 5), np.float32)
    assert image.neighborhood(a, lambda cells: cells.max(axis=-1)).shape == image.convolve(a, np.ones((3, 3))).shape


def test_neighborhood_lets_exceptions_through():
    def fail(cells):
        raise LookupError("mine")

    with pytest.raises(LookupError, match=r"^'?mine'?$"):
        image.neighborhood(np.zeros((4, 4)), fail, 3)


# --- what is refused -------------------------------------------------------------------------------------------------

A = np.zeros((5, 5), np.float32)
X = np.zeros((1, 1, 5, 5), np.float32)
BAD = {
    "gaussian size even": ("gaussian_kernel", (4,), ValueError),
    "gaussian size 0": ("gaussian_kernel", (0,), ValueError),
    "gaussian size negative": ("gaussian_kernel", (-3,), ValueError),
    "gaussian sigma 0": ("gaussian_kernel", (3, 0.0), ValueError),
    "gaussian sigma negative": ("gaussian_kernel", (3, -1.0), ValueError),
    "gaussian sigma nan": ("gaussian_kernel", (3, float("nan")), ValueError),
    "gaussian size huge": ("gaussian_kernel", (2**40 + 1,), (ValueError, MemoryError)),
    "convolve vector": ("convolve", (np.zeros(5), np.zeros((3, 3))), dn.ShapeError),
    "convolve kernel of one axis": ("convolve", (A, np.zeros(3)), dn.ShapeError),
    "convolve kernel of three axes": ("convolve", (A, np.zeros((1, 3, 3))), dn.ShapeError),
    "convolve kernel too large": ("convolve", (A, np.zeros((6, 3)), "valid"), dn.ShapeError),
    "convolve kernel empty": ("convolve", (A, np.zeros((0, 0))), dn.ShapeError),
    "convolve padding unknown": ("convolve", (A, np.zeros((3, 3)), "full"), ValueError),
    "convolve complex": ("convolve", (A.astype(complex), np.zeros((3, 3))), TypeError),
    "convolve objects": ("convolve", (np.full((3, 3), None), np.zeros((3, 3))), TypeError),
    "sobel vector": ("sobel", (np.zeros(5),), dn.ShapeError),
    "sobel complex": ("sobel", (A.astype(complex),), TypeError),
    "im2col of three axes": ("im2col", (np.zeros((1, 5, 5)), 3), dn.ShapeError),
    "im2col kernel too large": ("im2col", (X, 6), dn.ShapeError),
    "im2col kernel 0": ("im2col", (X, 0), ValueError),
    "im2col stride 0": ("im2col", (X, 3, 0), ValueError),
    "im2col padding negative": ("im2col", (X, 3, 1, -1), ValueError),
    "im2col dilation 0": ("im2col", (X, 3, 1, 0, 0), ValueError),
    "im2col padding huge": ("im2col", (X, 3, 1, 2**31), (ValueError, MemoryError)),
    "im2col padding overflows": ("im2col", (X, 3, 1, 2**62), (ValueError, MemoryError)),
    "col2im of two axes": ("col2im", (np.zeros((9, 9)), 5, 3), dn.ShapeError),
    "col2im rows": ("col2im", (np.zeros((1, 10, 9)), 5, 3), dn.ShapeError),
    "col2im columns": ("col2im", (np.zeros((1, 9, 8)), 5, 3), dn.ShapeError),
    "col2im output too small": ("col2im", (np.zeros((1, 9, 9)), 2, 3), dn.ShapeError),
    "neighborhood size even": ("neighborhood", (A, np.sum, 2), ValueError),
    "neighborhood size 0": ("neighborhood", (A, np.sum, 0), ValueError),
    "neighborhood size as a float": ("neighborhood", (A, np.sum, 3.0), TypeError),
    "neighborhood size as a text": ("neighborhood", (A, np.sum, "3"), TypeError),
    "neighborhood size as a pair": ("neighborhood", (A, np.sum, (3, 3)), TypeError),
    "neighborhood without cells": ("neighborhood", (np.zeros((2, 0, 4)), np.sum, 3), dn.ShapeError),
    "neighborhood vector": ("neighborhood", (np.zeros(5), np.sum, 3), dn.ShapeError),
    "neighborhood of wrong shape": ("neighborhood", (A, lambda cells: cells, 3), dn.ShapeError),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_image_arguments(name):
    function, arguments, error = BAD[name]
    with pytest.raises(error) as info:
        getattr(image, function)(*arguments)
    message = str(info.value)
    assert isinstance(info.value, MemoryError) or (
        function in message and "expected" in message and "got" in message
    ), message
