// image.hpp
#include "bindings.hpp"

namespace deepnet::python {

void bind_image(py::module_& m) {
  m.def(
      "gaussian_kernel", [](Index size, double sigma) { return as_array(image::gaussian_kernel(size, sigma)); },
      py::arg("size") = 7, py::arg("sigma") = 0.84089642, R"doc(
The smoothing kernel exp(-(x^2 + y^2) / (2 sigma^2)), normalised to sum 1: float32 of shape (size, size).

Parameters
----------
size : int
    In pixels; odd, so that there is a centre, x = y = 0.
sigma : float
    Standard deviation in pixels, > 0.

Raises
------
ValueError
    size is even or below 1, or sigma is not finite and > 0.

References
----------
Marr and Hildreth 1980, "Theory of edge detection".

Examples
--------
>>> import deepnet as dn
>>> kernel = dn.image.gaussian_kernel(7, sigma=0.84089642)
>>> print(f"{kernel[3, 3]:.8f} {kernel[0, 0]:.8f}")
0.22508352 0.00000067
)doc");
  m.def(
      "convolve",
      [](py::handle array, py::handle kernel, const std::string& padding) {
        if (padding != "same" && padding != "valid") {
          throw ValueError("[convolve] expected padding to be \"same\" or \"valid\", got \"" + padding + "\"");
        }
        const Tensor a = as_float(array, "convolve"), k = as_float(kernel, "convolve");
        Tensor out;
        {
          GilLeft release;
          out = image::convolve(a, k, padding == "same" ? image::Padding::same : image::Padding::valid);
        }
        return as_array(out);
      },
      py::arg("array"), py::arg("kernel"), py::arg("padding") = "same", R"doc(
Slide a kernel, as printed (no flip), over every (H, W) plane of an array:

    y[p,q] = sum_{r,s} kernel[r,s] array[p + r - a, q + s - b]

Parameters
----------
array : array (..., H, W)
    Converted to float32.
kernel : array (R, S)
    Converted to float32.
padding : "same" or "valid"
    "same": zeros outside and an output as large as the input, a = (R - 1) // 2, b = (S - 1) // 2. "valid": only where
    the kernel fits, a = b = 0.

Returns
-------
ndarray
    float32 of shape (..., H, W) or (..., H - R + 1, W - S + 1).

Raises
------
ShapeError
    An array of fewer than two axes, a kernel of other than two, or one that is larger than the array with "valid".
ValueError
    Another padding.

References
----------
Goodfellow, Bengio and Courville 2016, "Deep learning", eq. 9.6.

Examples
--------
>>> import numpy as np
>>> import deepnet as dn
>>> dn.image.convolve(np.arange(5.0).reshape(1, 5), [[-1.0, 0.0, 1.0]], padding="valid")
array([[2., 2., 2.]], dtype=float32)
)doc");
  m.def(
      "sobel",
      [](py::handle array) {
        const Tensor a = as_float(array, "sobel");
        std::pair<Tensor, Tensor> out;
        {
          GilLeft release;
          out = image::sobel(a);
        }
        return py::make_tuple(as_array(out.first), as_array(out.second));
      },
      py::arg("array"), R"doc(
Magnitude sqrt(Gx^2 + Gy^2) and angle arctan2(Gy, Gx), in radians, of the Sobel gradients of every (H, W) plane.

Gx = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], slid as printed; Gy is its transpose, so rows count downwards. Edges repeat
outwards. A slope of 1 a pixel has magnitude 8.

Parameters
----------
array : array (..., H, W)
    Converted to float32.

Returns
-------
tuple
    Two float32 arrays of the array's shape.

Raises
------
ShapeError
    The array has fewer than two axes.

References
----------
Sobel and Feldman 1968, "A 3x3 isotropic gradient operator for image processing".

Examples
--------
>>> import numpy as np
>>> import deepnet as dn
>>> magnitude, angle = dn.image.sobel(np.tile(np.arange(4.0), (4, 1)))
>>> print(magnitude[1, 1], angle[1, 1])
8.0 0.0
)doc");
  m.def(
      "im2col",
      [](py::handle x, py::handle kernel, py::handle stride, py::handle padding, py::handle dilation) {
        const Tensor input = as_float(x, "im2col");
        const Size2 k = as_size2(kernel, "im2col", "kernel_size"), s = as_size2(stride, "im2col", "stride");
        const Size2 p = as_size2(padding, "im2col", "padding"), d = as_size2(dilation, "im2col", "dilation");
        return as_array(without_gil([&] { return image::im2col(input, k, s, p, d); }));
      },
      py::arg("x"), py::arg("kernel_size"), py::arg("stride") = 1, py::arg("padding") = 0, py::arg("dilation") = 1,
      R"doc(
The receptive fields of a convolution as columns: (N, C, H, W) -> (N, C R S, P Q), float32.

columns[n, (c,r,s), (p,q)] = x[n, c, p stride + r dilation - padding, q stride + s dilation - padding], zeros outside. A
convolution is then the matrix product ``weight.reshape(K, -1) @ columns``.

Parameters
----------
x : array (N, C, H, W)
    Converted to float32.
kernel_size, stride, padding, dilation : int or (int, int)
    As those of `deepnet.nn.Conv2d`.

Raises
------
ShapeError
    x has not four axes, or the kernel is larger than the padded input.
ValueError
    A size out of range.

References
----------
Chellapilla, Puri and Simard 2006, "High performance convolutional neural networks for document processing".

Examples
--------
>>> import numpy as np
>>> import deepnet as dn
>>> dn.image.im2col(np.arange(9.0).reshape(1, 1, 3, 3), 2)[0]
array([[0., 1., 3., 4.],
       [1., 2., 4., 5.],
       [3., 4., 6., 7.],
       [4., 5., 7., 8.]], dtype=float32)
)doc");
  m.def(
      "col2im",
      [](py::handle columns, py::handle output, py::handle kernel, py::handle stride, py::handle padding,
         py::handle dilation) {
        const Tensor input = as_float(columns, "col2im");
        const Size2 o = as_size2(output, "col2im", "output_size"), k = as_size2(kernel, "col2im", "kernel_size");
        const Size2 s = as_size2(stride, "col2im", "stride"), p = as_size2(padding, "col2im", "padding");
        const Size2 d = as_size2(dilation, "col2im", "dilation");
        return as_array(without_gil([&] { return image::col2im(input, o, k, s, p, d); }));
      },
      py::arg("columns"), py::arg("output_size"), py::arg("kernel_size"), py::arg("stride") = 1, py::arg("padding") = 0,
      py::arg("dilation") = 1, R"doc(
The adjoint of `im2col`: adds every column back to the cells it came from, (N, C R S, P Q) -> (N, C, H, W), float32.

It is the step from dE/dColumns to dE/dx: overlapping cells add up.

Parameters
----------
columns : array (N, C R S, P Q)
    Converted to float32.
output_size : int or (int, int)
    (H, W).
kernel_size, stride, padding, dilation : int or (int, int)
    As those of `im2col`.

Raises
------
ShapeError
    The columns are not those of images of that size.
ValueError
    A size out of range.

References
----------
Chellapilla, Puri and Simard 2006, "High performance convolutional neural networks for document processing".

Examples
--------
>>> import numpy as np
>>> import deepnet as dn
>>> dn.image.col2im(np.ones((1, 4, 4)), 3, 2)
array([[[[1., 2., 1.],
         [2., 4., 2.],
         [1., 2., 1.]]]], dtype=float32)
)doc");
}

}  // namespace deepnet::python
