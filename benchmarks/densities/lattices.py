r"""Fields and spins on periodic lattices, with truth by transfer matrices.

The lattice φ⁴ theory in two dimensions,

.. math::
    S(\varphi) = \sum_x \Big[ \sum_{\mu = 1}^{2} (\varphi_{x + \mu} - \varphi_x)^2 + m^2 \varphi_x^2
    + \lambda \varphi_x^4 \Big], \qquad p \propto e^{-S},

at m² = −4 in its disordered phase, with the couplings of Albergo, Kanwar and Shanahan (2019), *Flow-based generative
models for Markov chain Monte Carlo in lattice field theory*, where the correlation length is a quarter of the lattice:
``phi4``, 8 × 8 with λ = 6.008, D = 64, and ``phi4_small``, 4 × 4 with λ = 6.975, D = 16.

With the weight of one site :math:`w(\varphi) = e^{-(4 + m^2) \varphi^2 - \lambda \varphi^4}` and Gauss's quadrature of
n nodes for it, a row of L sites has :math:`n^L` states and the lattice is
:math:`Z = \operatorname{tr} T^L` of the transfer matrix
:math:`T = A K A,\; K_{rr'} = e^{2 \sum_j r_j r'_j},\; A^2 = \operatorname{diag}(\prod_j w_j\, e^{2 r_j r_{j+1}})`.
K is a Kronecker product, so T multiplies a vector in :math:`L n^{L + 1}` operations, and its largest eigenvalues give
:math:`E\,\varphi^k = \sum_i \lambda_i^L \langle v_i | \varphi_1^k | v_i \rangle / \sum_i \lambda_i^L`.

``ising``, 6 × 6 on a torus at the critical temperature of the infinite lattice, D = 36, spins x ∈ {0, 1}
(:mod:`boltzmix.benchmarks.ising`). Its modes are the numbers of up-spins, whose distribution is exact.
"""

# jax and other libraries are not among the tools of every checkout
# pyright: reportMissingImports=false

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltzmix.benchmarks.densities.base import Density, LogProb, Modes, moments, zeros
from boltzmix.benchmarks.densities.truths import reference_moments
from boltzmix.benchmarks.ising import CRITICAL, bonds, ising_truth, rows_of

MASS = -4.0  # m²


def _phi4(length: int, coupling: float) -> tuple[LogProb, Callable[[], LogProb]]:
    own = 4 + MASS

    def log_prob(x: Tensor) -> Tensor:
        phi = x.reshape(-1, length, length)
        square = phi * phi
        # a roll by one site, written as what it does
        right = torch.cat([phi[:, :, 1:], phi[:, :, :1]], 2)
        down = torch.cat([phi[:, 1:], phi[:, :1]], 1)
        return (2 * phi * (right + down) - square * (own + coupling * square)).sum((1, 2))

    def jax_log_prob() -> LogProb:
        import jax.numpy as jnp

        def one(x: Any) -> Any:
            phi = x.reshape(length, length)
            square = phi * phi
            near = jnp.roll(phi, -1, 1) + jnp.roll(phi, -1, 0)
            return jnp.sum(2 * phi * near - square * (own + coupling * square))

        return one

    return log_prob, jax_log_prob


@cache
def phi4() -> Density:
    """8 × 8 sites."""
    log_prob, jax_log_prob = _phi4(8, 6.008)
    known = {**reference_moments("phi4", 64), "truth": "quadrature"}  # kept in a file since it takes a minute
    return Density("phi4", 64, log_prob, jax_log_prob, **known)


@cache
def phi4_small() -> Density:
    """4 × 4 sites."""
    log_prob, jax_log_prob = _phi4(4, 6.975)
    log_z, second, fourth = transfer_moments(4, 6.975, 9)
    every = torch.ones(16, dtype=torch.float64)
    return Density(
        "phi4_small", 16, log_prob, jax_log_prob, **moments(zeros(16), second * every, fourth * every), log_z=log_z,
        truth="quadrature",
    )  # fmt: skip


def gauss_nodes(coupling: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss's quadrature for the weight of one site (Golub and Welsch, 1969).

    The recurrence of the orthogonal polynomials is that of Stieltjes, on a fine grid.
    """
    x = np.linspace(-3.0, 3.0, 6001)
    mass = np.exp(-(4 + MASS) * x**2 - coupling * x**4) * (x[1] - x[0])
    before, now, off = np.zeros_like(x), np.full_like(x, 1 / math.sqrt(mass.sum())), []
    for k in range(1, count):
        following = x * now - (off[-1] * before if off else 0.0)  # the weight is even: no diagonal
        norm = math.sqrt((mass * following**2).sum())
        before, now = now, following / norm
        off.append(norm)
        assert len(off) == k
    nodes, vectors = np.linalg.eigh(np.diag(off, 1) + np.diag(off, -1))
    return nodes, mass.sum() * vectors[0] ** 2


def transfer_moments(length: int, coupling: float, count: int, pairs: int = 24) -> tuple[float, float, float]:
    r"""log Z, :math:`E\,\varphi^2` and :math:`E\,\varphi^4` of an L × L lattice by its transfer matrix.

    Args:
        length: L.
        coupling: λ.
        count: n, nodes for each site.
        pairs: how many eigenvalues are kept.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    nodes, weights = gauss_nodes(coupling, count)
    shape = (count,) * length
    half = np.zeros(shape)  # log of A
    for j in range(length):
        axes = [1] * length
        axes[j] = count
        half += 0.5 * np.log(weights).reshape(axes)
        pair = np.outer(nodes, nodes)
        nearby = [1] * length
        nearby[j] = nearby[(j + 1) % length] = count
        half += (pair if j + 1 < length else pair.T).reshape(nearby)  # A² holds exp(2 r r')
    top = half.max()
    scale, kernel = np.exp(half - top), np.exp(2 * np.outer(nodes, nodes))

    def apply(v: np.ndarray) -> np.ndarray:
        t = scale * v.reshape(shape)
        for _ in range(length):  # each turn multiplies the first axis and moves it to the end
            t = np.tensordot(t, kernel, (0, 0))
        return (scale * t).reshape(-1)

    size = count**length
    operator = LinearOperator((size, size), matvec=apply, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    start = np.random.RandomState(0).rand(size)
    values, vectors = eigsh(operator, k=min(pairs, size - 2), v0=start)
    weight = (values / values.max()) ** length
    at = (vectors**2).reshape(count, -1, len(values)).sum(1)  # of the first site, for each eigenvector
    total = weight.sum()
    second, fourth = (float((weight * (nodes**k @ at)).sum() / total) for k in (2, 4))
    return float(np.log(total) + length * (np.log(values.max()) + 2 * top)), second, fourth


# -------------------------------------------------------------------------- spins


@cache
def ising(length: int = 6) -> Density:
    """A magnet at the critical temperature of the infinite lattice."""
    size, beta = length * length, CRITICAL
    truth = ising_truth(length, beta)

    def log_prob(x: Tensor) -> Tensor:
        return beta * bonds(2.0 * x.reshape(-1, length, length) - 1.0, periodic=True)

    half = torch.full((size,), 0.5, dtype=torch.float64)  # x² = x, and both signs are alike
    return Density(
        "ising", size, log_prob, None, **moments(half, half, half), exact=lambda n, g: _spins(length, beta, n, g),
        log_z=truth.log_z, modes=Modes(lambda x: x.round().long().sum(1), truth.ups), support="integers(2)",
    )  # fmt: skip


def _spins(length: int, beta: float, n: int, generator: torch.Generator) -> Tensor:
    """Exact draws: the first row from the diagonal of the power of the transfer matrix, then row by row."""
    rows = rows_of(length)
    within = (beta * (rows * rows.roll(1, 1)).sum(1)).exp()
    step = (beta * rows @ rows.T).exp() * within
    powers = [torch.eye(len(rows), dtype=torch.float64)]
    for _ in range(length):
        powers.append(powers[-1] @ step / step.max())
    first = torch.multinomial(powers[length].diagonal(), n, replacement=True, generator=generator)
    chosen, last = [first], first
    for k in range(1, length):
        chance = step[last] * powers[length - k][:, first].T  # to the next row, and from there back to the first
        last = torch.multinomial(chance, 1, generator=generator)[:, 0]
        chosen.append(last)
    return (0.5 * (rows[torch.stack(chosen, 1)] + 1)).reshape(n, -1)


DENSITIES = {"phi4": phi4, "phi4_small": phi4_small, "ising": ising}
