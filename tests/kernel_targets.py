"""Targets with exact draws and known distribution functions, on which kernels are checked."""

import math
from functools import cache
from types import SimpleNamespace

import torch


class Toy:
    """A target with exact draws; ``uniforms(x)`` are independent uniforms ``(N, K)`` where x follows the target."""

    has_energy = True
    dim: int

    def energy(self, x):
        """−log p up to a constant, ``(N,)``."""
        raise NotImplementedError

    def score(self, x):
        """∇ log p, ``(N, D)``."""
        raise NotImplementedError

    def energy_and_score(self, x):
        """Both."""
        return self.energy(x), self.score(x)

    def draw(self, n, source):
        """Exact draws ``(n, D)`` in float64."""
        raise NotImplementedError

    def uniforms(self, x):
        """Distribution functions at x."""
        raise NotImplementedError


def normals(n, dim, source):
    """Standard normals in float64."""
    return torch.randn(n, dim, generator=source, dtype=torch.float64)


class Scales(Toy):
    """N(m, diag(v)) in ten dimensions; the last uniform is that of the distance from the mean."""

    dim = 10

    def __init__(self):
        self.mean = torch.linspace(-1, 1, 10, dtype=torch.float64)
        self.scale = torch.linspace(0.5, 1.5, 10, dtype=torch.float64)

    def _z(self, x):
        return (x - self.mean.to(x)) / self.scale.to(x)

    def energy(self, x):
        return 0.5 * (self._z(x) ** 2).sum(1)

    def score(self, x):
        return -self._z(x) / self.scale.to(x)

    def draw(self, n, source):
        return self.mean + self.scale * normals(n, 10, source)

    def uniforms(self, x):
        z = self._z(x)
        radius = torch.special.gammainc(torch.tensor(5.0, dtype=x.dtype), 0.5 * (z * z).sum(1))
        return torch.cat([torch.special.ndtr(z), radius[:, None]], 1)


class Banana(Toy):
    """x ~ N(0, 1) and y | x ~ N((x² − 1) / 2, 0.6²)."""

    dim = 2
    width = 0.6

    def _rest(self, x):
        return x[:, 1] - 0.5 * (x[:, 0] ** 2 - 1)

    def energy(self, x):
        return 0.5 * x[:, 0] ** 2 + 0.5 * (self._rest(x) / self.width) ** 2

    def score(self, x):
        pull = self._rest(x) / self.width**2
        return torch.stack([x[:, 0] * (pull - 1), -pull], 1)

    def draw(self, n, source):
        z = normals(n, 2, source)
        return torch.stack([z[:, 0], 0.5 * (z[:, 0] ** 2 - 1) + self.width * z[:, 1]], 1)

    def uniforms(self, x):
        return torch.special.ndtr(torch.stack([x[:, 0], self._rest(x) / self.width], 1))


class Gumbel(Toy):
    """Three independent standard Gumbel variables: skewed, and steep on the left."""

    dim = 3

    def energy(self, x):
        return (x + (-x).exp()).sum(1)

    def score(self, x):
        return (-x).exp() - 1

    def draw(self, n, source):
        u = torch.rand(n, 3, generator=source, dtype=torch.float64)
        return -(-(u.clamp(min=1e-300)).log()).log()

    def uniforms(self, x):
        return (-(-x).exp()).exp()


class Plain(Toy):
    """N(0, v I)."""

    def __init__(self, dim, variance):
        self.dim, self.variance = dim, variance

    def energy(self, x):
        return 0.5 * (x * x).sum(1) / self.variance

    def score(self, x):
        return -x / self.variance


class Quartic(Toy):
    """A target that is no Gaussian, so that no formula is exact by accident; x = F z for a matrix F."""

    dim = 3

    def __init__(self, factor=None):
        self.factor = torch.eye(3, dtype=torch.float64) if factor is None else factor
        self.inverse = torch.linalg.inv(self.factor)

    def energy(self, x):
        z = x @ self.inverse.to(x).mT
        return (z**4).sum(1) / 4 + 0.3 * z.prod(1)

    def score(self, x):
        z = x @ self.inverse.to(x).mT
        others = torch.stack([z[:, 1] * z[:, 2], z[:, 0] * z[:, 2], z[:, 0] * z[:, 1]], 1)
        return -(z**3 + 0.3 * others) @ self.inverse.to(x)


class Edge(Toy):
    """exp(2 √(4 − x²)) on (−2, 2), times N(y; 0, 1): an infinite gradient at the edge, and ``outside`` beyond it."""

    dim = 2

    def __init__(self, outside):
        self.outside = outside

    def energy(self, x):
        inside = 2 * (4 - x[:, 0] ** 2).clamp(min=0).sqrt()
        return torch.where(x[:, 0].abs() < 2, 0.5 * x[:, 1] ** 2 - inside, self.outside)

    def score(self, x):
        root = (4 - x[:, 0] ** 2).clamp(min=1e-300 if x.dtype == torch.float64 else 1e-38).sqrt()
        beyond = torch.nan if math.isnan(self.outside) else 0.0
        slope = torch.where(x[:, 0].abs() < 2, -2 * x[:, 0] / root, beyond)
        return torch.stack([slope, -x[:, 1]], 1)

    @staticmethod
    @cache
    def _table():
        grid = torch.linspace(-math.pi / 2, math.pi / 2, 20_001, dtype=torch.float64).sin() * 2
        middle = 0.5 * (grid[1:] + grid[:-1])
        mass = (2 * (4 - middle**2).sqrt()).exp() * grid.diff()
        return grid, torch.cat([mass.new_zeros(1), mass.cumsum(0) / mass.sum()])

    @staticmethod
    def _interpolate(at, nodes, values):
        k = torch.searchsorted(nodes, at.contiguous()).clamp(1, len(nodes) - 1)
        share = (at - nodes[k - 1]) / (nodes[k] - nodes[k - 1])
        return values[k - 1] + share * (values[k] - values[k - 1])

    def draw(self, n, source):
        grid, mass = self._table()
        u = torch.rand(n, generator=source, dtype=torch.float64)
        return torch.stack([self._interpolate(u, mass, grid), normals(n, 1, source)[:, 0]], 1)

    def uniforms(self, x):
        grid, mass = self._table()
        return torch.stack([self._interpolate(x[:, 0], grid, mass), torch.special.ndtr(x[:, 1])], 1)


class Posterior(Toy):
    """μ ~ N(0, 1), log τ ~ N(−0.3, 0.5²) and five data N(μ, τ²), which differ from row to row."""

    dim = 2
    count = 5
    view = SimpleNamespace(per_row=True)

    def __init__(self, data):
        self.data = data

    def _parts(self, x):
        assert len(x) == len(self.data), "conditions belong to their rows: all of them are evaluated, in order"
        return x[:, 0], x[:, 1], self.data - x[:, :1], (-2 * x[:, 1]).exp()

    def energy(self, x):
        mu, log_tau, rest, precision = self._parts(x)
        prior = 0.5 * mu**2 + 2 * (log_tau + 0.3) ** 2
        return prior + self.count * log_tau + 0.5 * (rest**2).sum(1) * precision

    def score(self, x):
        mu, log_tau, rest, precision = self._parts(x)
        slope = (rest**2).sum(1) * precision - self.count - 4 * (log_tau + 0.3)
        return torch.stack([rest.sum(1) * precision - mu, slope], 1)

    @staticmethod
    def prior(n, source):
        """Draws of the parameters."""
        return normals(n, 2, source) * torch.tensor([1.0, 0.5]) + torch.tensor([0.0, -0.3])

    @classmethod
    def given(cls, x, source):
        """The target for data drawn from the parameters."""
        return cls(x[:, :1] + x[:, 1:].exp() * normals(len(x), cls.count, source))

    def uniforms(self, x):
        """Of μ, log τ, and given these of the data's mean and scatter about μ."""
        mu, log_tau, rest, precision = self._parts(x)
        scatter = torch.special.gammainc(
            torch.tensor(self.count / 2, dtype=x.dtype), 0.5 * (rest**2).sum(1) * precision
        )
        z = torch.stack([mu, 2 * (log_tau + 0.3), rest.mean(1) * (self.count * precision).sqrt()], 1)
        return torch.cat([torch.special.ndtr(z), scatter[:, None]], 1)


class Bare:
    """A user's target with the three methods that kernels need, and a count of the rows they asked for."""

    has_energy = True

    def __init__(self, target):
        self.target, self.rows = target, 0

    def score(self, x):
        self.rows += len(x)
        return self.target.score(x)

    def energy_and_score(self, x):
        self.rows += len(x)
        return self.target.energy_and_score(x)


class Counted(Bare):
    """The same with energies alone."""

    def energy(self, x):
        self.rows += len(x)
        return self.target.energy(x)


class Plateau(Counted):
    """And no gradient at all."""

    def score(self, x):
        raise AssertionError("a score was asked for, and energies would do")

    def energy_and_score(self, x):
        raise AssertionError("a score was asked for, and energies would do")
