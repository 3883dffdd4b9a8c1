"""Blur, down-sampling, masks, stripes, metal, mixtures: operators whose singular values mostly have a closed form.

A separable operator A = A_y x A_x (one matrix a side) has the singular values s_y s_x and the vectors of its factors:
the SVD of two small matrices serves any boundary. A periodic convolution is diagonal in the Fourier basis. A mask keeps
numbers as they are. Weights of a blur sum to one: a constant image stays what it is (but for zeros beyond the border).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from scidiff.core.errors import UsageError
from scidiff.core.operator import SVD, Composition, LinearOperator
from scidiff.core.run import uniform

BOUNDARIES = ("circular", "zero", "replicate", "reflect")


def _source(index: Tensor, n: int, boundary: str) -> tuple[Tensor, Tensor]:
    """(the pixel that stands at `index`, whether one does) beyond the ends of a line of n pixels.

    "reflect" mirrors about the edge of the line, so that the outermost pixel appears twice.
    """
    inside = (index >= 0) & (index < n)
    if boundary == "circular":
        return index % n, torch.ones_like(inside)
    if boundary == "replicate":
        return index.clamp(0, n - 1), torch.ones_like(inside)
    if boundary == "reflect":
        folded = index % (2 * n)
        return torch.where(folded < n, folded, 2 * n - 1 - folded), torch.ones_like(inside)
    if boundary == "zero":
        return index.clamp(0, n - 1), inside
    raise UsageError(f"Unknown boundary {boundary!r}.", f"Known: {', '.join(BOUNDARIES)}.")


def taps(n: int, positions: Tensor, offsets: Tensor, weights: Tensor, boundary: str) -> Tensor:
    """Matrix [rows, n] float64 whose row r has `weights` [rows, k] at pixels positions [rows, 1] + offsets [k]."""
    pixel, real = _source(positions + offsets, n, boundary)
    matrix = torch.zeros(len(positions), n, dtype=torch.float64)
    return matrix.scatter_add_(1, pixel, torch.where(real, weights, 0.0).double().expand(pixel.shape))


def gaussian_matrix(n: int, std: float, boundary: str) -> Tensor:
    """Gaussian blur of standard deviation `std` pixels along a line, cut at four of them, [n, n]."""
    reach = max(1, math.ceil(4 * std))
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets.double() / max(std, 1e-6)) ** 2)
    return taps(n, torch.arange(n)[:, None], offsets, (weights / weights.sum())[None], boundary)


def average_matrix(n: int, factor: int) -> Tensor:
    """Means of `factor` neighbours, [n / factor, n]."""
    if factor < 1 or n % factor:
        raise UsageError(f"{n} pixels cannot be averaged in groups of {factor}.", "Choose a divisor.")
    return torch.kron(torch.eye(n // factor, dtype=torch.float64), torch.full((1, factor), 1 / factor).double())


def bicubic_matrix(n: int, factor: int, boundary: str = "reflect") -> Tensor:
    """Bicubic down-sampling by Keys' kernel (1981, a = -1/2) stretched by the factor, [n / factor, n]."""
    if factor < 1 or n % factor:
        raise UsageError(f"{n} pixels cannot be reduced by {factor}.", "Choose a divisor.")
    centre = (torch.arange(n // factor, dtype=torch.float64)[:, None] + 0.5) * factor - 0.5
    low = centre.floor().long() - 2 * factor
    offsets = torch.arange(4 * factor + 2)
    d = ((low + offsets).double() - centre).abs() / factor
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    weights = torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))
    return taps(n, low, offsets, weights / weights.sum(1, keepdim=True), boundary)


class Separable(LinearOperator):
    """One matrix along each of some axes: x [B, *in_shape] with `matrices` {axis of in_shape: [out, in]}."""

    def __init__(self, in_shape: Sequence[int], matrices: dict[int, Tensor], slice_separable: bool = True) -> None:
        shape = list(in_shape)
        for axis, matrix in matrices.items():
            if matrix.shape[1] != shape[axis]:
                raise UsageError(f"A matrix of {matrix.shape[1]} columns cannot act on {shape[axis]} pixels.")
            shape[axis] = matrix.shape[0]
        super().__init__(in_shape, shape)
        self.matrices, self.slice_separable = dict(matrices), slice_separable

    @staticmethod
    def _along(x: Tensor, matrices: dict[int, Tensor]) -> Tensor:
        for axis, matrix in matrices.items():
            x = torch.tensordot(x, matrix.to(x.device, x.dtype), dims=([axis + 1], [1])).movedim(-1, axis + 1)
        return x

    def _forward(self, x: Tensor) -> Tensor:
        return self._along(x, self.matrices)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._along(y, {axis: matrix.T for axis, matrix in self.matrices.items()})

    @cached_property
    def _factors(self) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
        u, v, total = {}, {}, torch.ones([1] * len(self.in_shape), dtype=torch.float64)
        for axis, matrix in self.matrices.items():
            u[axis], s, v_t = torch.linalg.svd(matrix.double(), full_matrices=False)
            v[axis] = v_t.T.contiguous()
            total = total * s.view([-1 if a == axis else 1 for a in range(len(self.in_shape))])
        shape = [u[a].shape[1] if a in u else n for a, n in enumerate(self.in_shape)]
        return total.expand(shape).contiguous(), u, v

    def svd(self) -> SVD:
        s, u, v = self._factors

        def by(matrices: dict[int, Tensor], transposed: bool):  # noqa: ANN202
            taken = {a: m.T if transposed else m for a, m in matrices.items()}
            return lambda x: self._along(x, taken)

        return SVD(s, by(u, False), by(u, True), by(v, False), by(v, True))


class GaussianBlur(Separable):
    """Gaussian blur in the plane, `std` pixels, beyond the border by `boundary`."""

    def __init__(self, size: Sequence[int], std: float, boundary: str = "reflect") -> None:
        super().__init__((1, *size), {1 + i: gaussian_matrix(n, std, boundary) for i, n in enumerate(size)})


class AveragePool(Separable):
    """Means of `factor` x `factor` pixels."""

    def __init__(self, size: Sequence[int], factor: int) -> None:
        super().__init__((1, *size), {1 + i: average_matrix(n, factor) for i, n in enumerate(size)})


class Bicubic(Separable):
    """Bicubic down-sampling by `factor` with anti-aliasing."""

    def __init__(self, size: Sequence[int], factor: int) -> None:
        super().__init__((1, *size), {1 + i: bicubic_matrix(n, factor) for i, n in enumerate(size)})


class DownsampleZ(Separable):
    """Thick slices from thin ones: volumes [B, Z, 1, Y, X], `factor` slices averaged, or bicubic along z."""

    def __init__(self, size: Sequence[int], factor: int, kind: str = "average") -> None:
        if kind not in ("average", "bicubic"):
            raise UsageError(f"Slices are reduced by 'average' or 'bicubic', not {kind!r}.")
        matrix = average_matrix(size[0], factor) if kind == "average" else bicubic_matrix(size[0], factor)
        super().__init__((size[0], 1, *size[1:]), {0: matrix}, slice_separable=False)


class Blur(LinearOperator):
    """Convolution with any kernel [k, l] of odd sides by FFT; its middle is the origin.

    Beyond the border the image goes on by `boundary`; the adjoint adds what reached there back to where it came from.
    """

    def __init__(self, size: Sequence[int], kernel: Tensor, boundary: str = "circular") -> None:
        if kernel.dim() != 2 or kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
            raise UsageError(f"A blur kernel is a table with odd sides, not {tuple(kernel.shape)}.")
        super().__init__((1, *size), (1, *size))
        self.kernel, self.boundary = kernel.double(), boundary
        reach = [0, 0] if boundary == "circular" else [k // 2 for k in kernel.shape]
        self._lines = [_source(torch.arange(-r, n + r), n, boundary) for n, r in zip(size, reach, strict=True)]
        self._reach, shape = reach, [n + 2 * r for n, r in zip(size, reach, strict=True)]
        grid = torch.zeros(shape, dtype=torch.float64)
        rows, columns = ((torch.arange(k) - k // 2) % n for k, n in zip(kernel.shape, shape, strict=True))
        where = rows[:, None].expand(kernel.shape), columns.expand(kernel.shape)
        grid.index_put_(where, self.kernel, accumulate=True)
        self.response = torch.fft.fft2(grid)

    def _filtered(self, x: Tensor, conjugate: bool) -> Tensor:
        response = self.response[:, : x.shape[-1] // 2 + 1].to(x.device, x.dtype.to_complex())
        return torch.fft.irfft2(torch.fft.rfft2(x) * (response.conj() if conjugate else response), s=x.shape[-2:])

    def _forward(self, x: Tensor) -> Tensor:
        for axis, (pixel, real) in zip((-2, -1), self._lines, strict=True):
            shape = [-1, 1] if axis == -2 else [-1]
            x = x.index_select(axis, pixel.to(x.device)) * real.to(x.device, x.dtype).view(shape)
        y = self._filtered(x, False)
        (r, q), (n, m) = self._reach, self.in_shape[1:]
        return y[..., r : r + n, q : q + m].contiguous()

    def _adjoint(self, y: Tensor) -> Tensor:
        r, q = self._reach
        x = self._filtered(torch.nn.functional.pad(y, (q, q, r, r)), True)
        for axis, (pixel, real), n in zip((-2, -1), self._lines, self.in_shape[1:], strict=True):
            shape = [-1, 1] if axis == -2 else [-1]
            target = list(x.shape)
            target[axis] = n
            x = x.new_zeros(target).index_add_(axis, pixel.to(x.device), x * real.to(x.device, x.dtype).view(shape))
        return x

    def svd(self) -> SVD | None:
        """In the Fourier basis, where the boundary is circular; coefficients are complex."""
        if self.boundary != "circular":
            return None
        size = self.response.abs()
        phase = torch.where(size > 1e-14, self.response / size.clamp(min=1e-300), 1.0 + 0j)

        def there(x: Tensor) -> Tensor:
            return torch.fft.fft2(x, norm="ortho")

        def back(c: Tensor) -> Tensor:
            return torch.fft.ifft2(c, norm="ortho").real

        def turned(c: Tensor) -> Tensor:
            return phase.to(c.device, c.dtype)

        return SVD(size[None], lambda c: back(turned(c) * c), lambda y: turned(there(y)).conj() * there(y), back, there)


class Diagonal(LinearOperator):
    """Each number of a sample times its own `gain`, of the shape of a sample."""

    def __init__(self, gain: Tensor) -> None:
        super().__init__(gain.shape, gain.shape)
        self.gain = gain

    def _forward(self, x: Tensor) -> Tensor:
        return x * self.gain.to(x.device, x.dtype)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._forward(y)

    def svd(self) -> SVD:
        sign = torch.where(self.gain < 0, -1.0, 1.0)

        def signed(c: Tensor) -> Tensor:
            return c * sign.to(c.device, c.dtype)

        def same(c: Tensor) -> Tensor:
            return c

        return SVD(self.gain.abs().double(), signed, signed, same, same)


class Keep(LinearOperator):
    """The numbers of a sample where `mask` (bool, its shape) is true, as a list [B, m]."""

    def __init__(self, mask: Tensor) -> None:
        self.index = mask.flatten().nonzero()[:, 0]
        if not len(self.index):
            raise UsageError("The mask keeps nothing.")
        super().__init__(mask.shape, (len(self.index),))
        self.mask = mask

    def _forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self.index.to(x.device)]

    def _adjoint(self, y: Tensor) -> Tensor:
        whole = y.new_zeros(len(y), self.mask.numel())
        whole[:, self.index.to(y.device)] = y
        return whole.view(-1, *self.in_shape)

    def svd(self) -> SVD:
        ones = torch.ones(self.out_shape, dtype=torch.float64)
        return SVD(ones, lambda c: c, lambda y: y, self._adjoint, self._forward)


class Inpainting(Keep):
    """Pixels that are known: `mask` [Y, X] (bool), or a random `share` of them by `seed`."""

    def __init__(self, size: Sequence[int], mask: Tensor | None = None, share: float = 0.5, seed: int = 0) -> None:
        if mask is None:
            draw = uniform(seed, torch.arange(1), "inpainting", math.prod(size))
            mask = (draw < share).view(*size)
        if tuple(mask.shape) != tuple(size):
            raise UsageError(f"The mask has the shape {tuple(mask.shape)}, the image {tuple(size)}.")
        super().__init__(mask.bool()[None])


class Stripes(Diagonal):
    """A random `share` of the columns loses `strength` of its signal (1: all of it)."""

    def __init__(self, size: Sequence[int], share: float = 0.3, strength: float = 0.3, seed: int = 0) -> None:
        order = uniform(seed, torch.arange(1), "stripes", size[1])[0].argsort()
        gain = torch.ones(size[1], dtype=torch.float64)
        gain[order[: round(share * size[1])]] = 1.0 - strength
        super().__init__(gain.expand(1, *size).contiguous())


class MetalTrace(Composition):
    """A projector without the rays that meet metal (`metal` [Y, X], bool): measurements [B, m] of the other rays."""

    def __init__(self, projector: LinearOperator, metal: Tensor) -> None:
        trace = projector(metal.to(torch.float32).view(1, *projector.in_shape))[0]
        super().__init__(Keep(trace <= 1e-6 * trace.max()), projector)


class Mixture(LinearOperator):
    """Several sources seen at once: x [B, K, *in_shape], y = sum_k A_k x_k."""

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        a = operators[0]
        for b in operators[1:]:
            if (a.in_shape, a.out_shape, a.dtype, a.out_dtype) != (b.in_shape, b.out_shape, b.dtype, b.out_dtype):
                raise UsageError(f"{a} and {b} cannot be mixed: they act between different spaces.")
        super().__init__((len(operators), *a.in_shape), a.out_shape, a.dtype, a.out_dtype)
        self.operators, self.slice_separable = tuple(operators), all(o.slice_separable for o in operators)

    def _forward(self, x: Tensor) -> Tensor:
        first, *others = (o._forward(x[:, k]) for k, o in enumerate(self.operators))
        return sum(others, first)

    def _adjoint(self, y: Tensor) -> Tensor:
        return torch.stack([o._adjoint(y) for o in self.operators], 1)

    def slab(self, start: int, stop: int) -> LinearOperator:
        return Mixture([o.slab(start, stop) for o in self.operators])

    def svd(self) -> SVD | None:
        """Where all K sources meet one operator: s sqrt(K), along the sum of the sources."""
        inner = self.operators[0].svd()
        if inner is None or any(o is not self.operators[0] for o in self.operators):
            return None
        count = len(self.operators)
        root = math.sqrt(count)
        return SVD(inner.s * root, inner.u, inner.ut,
                   lambda c: torch.stack([inner.v(c) / root] * count, 1), lambda x: inner.vt(x.sum(1) / root))
