r"""Diffusion over trajectories, trained with coordinates that are known.

A trajectory x is H tokens of D normalised numbers, state and then action. Planning asks for
:math:`p(x_f \mid x_k)`: the free coordinates given the known ones (a start, a goal, waypoints, what has been driven so
far). The network is told the known coordinates as they are, without noise, and a mask that says which they are, and
learns the score of

.. math:: p(x_f; \sigma \mid x_k) = \int p(x_f^0 \mid x_k)\, N(x_f; x_f^0, \sigma^2 I)\, dx_f^0

for a random mask in every row of every batch. That is a noised path for each mask, so samplers are exact on it, where
overwriting known coordinates with noised ones at every level is not; the empty mask is the joint density.

With :math:`s = \sqrt{\sigma^2 + \sigma_d^2}` the network reads :math:`x_f / s` and :math:`x_k / \sigma_d`, both of unit
variance, and the loss is that of :class:`~boltzmix.models.diffusion.Diffusion` over free coordinates alone.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from boltzmix.compose.term import Evaluated, Term
from boltzmix.compose.variable import Variable, expand_rows
from boltzmix.models.denoiser import Coordinates, Denoiser
from boltzmix.models.diffusion import Diffusion
from boltzmix.models.labels import Batch
from boltzmix.models.nets.embedding import NULL

if TYPE_CHECKING:
    from boltzmix.compose.gaussian import Gaussian

PATTERNS = {"none": 0.15, "start": 0.10, "goal": 0.05, "start and goal": 0.40, "waypoints": 0.15, "prefix": 0.15}
"""What is known in a row of training, and how often."""

_NOTHING, _POSITION, _STATE, _EVERYTHING = range(4)


class KnownPatterns:
    r"""Random masks of known coordinates, as a planner would ask for them.

    ==================  ========================================================================================
    pattern             known
    ==================  ========================================================================================
    ``none``            nothing
    ``start``           the first token: its state, or its position alone
    ``goal``            the last token: its state or its position
    ``start and goal``  both
    ``waypoints``       the first token, the last one in half of the rows, and one to three others
    ``prefix``          the first 1 … H/2 tokens, with their actions or without, and the goal in half of the rows
    ==================  ========================================================================================

    A start is a whole state in 85 % of rows, a goal in 50 %, a waypoint in 20 %; else it is a position.

    Args:
        trajectory: names of the columns: ``state``, ``action`` and ``position``.
        shares: how often each pattern occurs; they are normalised. None for :data:`PATTERNS`.

    Raises:
        ValueError: an unknown pattern, or shares that are negative or all zero.

    Example:
        >>> draw = KnownPatterns({"state": ("x", "y"), "position": ("x", "y")}, {"start": 1.0})
        >>> draw(1, 4, torch.Generator().manual_seed(0))[0, :, 0].tolist()
        [True, False, False, False]
    """

    def __init__(self, trajectory: Mapping[str, Any], shares: Mapping[str, float] | None = None) -> None:
        """Check the shares and lay out the columns of each kind."""
        shares = PATTERNS if shares is None else shares
        unknown = sorted(set(shares) - set(PATTERNS))
        if unknown:
            raise ValueError(f"patterns of known coordinates are {list(PATTERNS)}, got {unknown}")
        if any(share < 0 for share in shares.values()) or not sum(shares.values()) > 0:
            raise ValueError(f"shares of patterns are numbers >= 0 that are not all 0, got {dict(shares)}")
        self.shares = torch.tensor([float(shares.get(name, 0.0)) for name in PATTERNS])
        state, action = tuple(trajectory["state"]), tuple(trajectory.get("action", ()))
        positions = {state.index(name) for name in trajectory.get("position", ("x", "y"))}
        size = len(state) + len(action)
        self.columns = torch.zeros(4, size, dtype=torch.bool)
        self.columns[_POSITION] = torch.tensor([index in positions for index in range(size)])
        self.columns[_STATE, : len(state)] = True
        self.columns[_EVERYTHING] = True

    def __call__(self, n: int, horizon: int, generator: torch.Generator) -> Tensor:
        """Masks ``(n, horizon, D)``, True where a coordinate is known, on the generator's device."""
        device = generator.device
        places = torch.multinomial(self.shares.to(device), n, replacement=True, generator=generator)
        pattern = {name: (places == index)[:, None] for index, name in enumerate(PATTERNS)}

        def chance(share: float, *shape: int) -> Tensor:
            return torch.rand(n, *shape, generator=generator, device=device) < share

        def one_of(share: float, often: int, seldom: int, *shape: int) -> Tensor:
            return torch.where(chance(share, *shape), often, seldom)

        token = torch.arange(horizon, device=device)
        half = chance(0.5, 1)
        first = pattern["start"] | pattern["start and goal"] | pattern["waypoints"]
        last = pattern["goal"] | pattern["start and goal"] | ((pattern["waypoints"] | pattern["prefix"]) & half)
        length = torch.randint(1, max(2, horizon // 2 + 1), (n, 1), generator=generator, device=device)
        count = torch.randint(1, 4, (n, 1), generator=generator, device=device)
        rank = torch.rand(n, horizon, generator=generator, device=device).argsort(1)
        waypoint = pattern["waypoints"] & (rank < count)
        prefix = pattern["prefix"] & (token < length)

        kind = torch.where(waypoint, one_of(0.2, _STATE, _POSITION, horizon), _NOTHING)
        kind = torch.where(prefix, one_of(0.5, _EVERYTHING, _STATE, 1), kind)
        kind = torch.where(first & (token == 0), one_of(0.85, _STATE, _POSITION, 1), kind)
        kind = torch.where(last & (token == horizon - 1), one_of(0.5, _STATE, _POSITION, 1), kind)
        return self.columns.to(device)[kind]


class TrajectoryDiffusion(Diffusion):
    r"""A diffusion model of trajectories, and of their free coordinates given known ones.

    Args:
        net: called ``net(x, c_noise, rows)`` with x ``(N, H, 2 D)``: the trajectory, and its mask of known
            coordinates; returns ``(N, H, D)``. :class:`~boltzmix.models.nets.TemporalUNet` or
            :class:`~boltzmix.models.nets.TrajectoryDiT`.
        event_shape: (H, D).
        trajectory: what the numbers are, in the form of ``TrajectorySpace.to_dict()``: ``horizon``, ``state`` and
            ``action`` (names of columns), ``dt`` (seconds between tokens), ``stride`` (environment steps between
            tokens), ``loc`` and ``scale`` (of the normaliser, physical units), ``position``, ``bounds``. It is kept
            beside the weights, so that a planner knows the units.
        patterns: shares of the patterns of known coordinates in training, see :class:`KnownPatterns`.
        lengths: shorter lengths that the model is trained on, too, by windows of the data. Segments that overlap
            then have the right marginals (:meth:`resized`).
        crops: share of the batches that are windows of one of ``lengths``.
        importance: weight of each column in the loss, ``(D,)``; the minimum stays where it is, the effort moves. Empty
            for equal weights.
        sigma_data: standard deviation of a normalised coordinate, default 1.
        options: of :class:`~boltzmix.models.diffusion.Diffusion`, EDM's preconditioning only. ``fields`` names what
            :meth:`given` takes, such as ``{"returns": (0, 1), "skill": ("left", "right")}``. In training a row is told
            nothing with probability ``dropout``, and each field of the others is hidden with that probability, too.

    Raises:
        ValueError: a description of trajectories that does not fit (H, D), another parameterization, lengths that the
            network does not take.

    Source: M. Janner et al. (2022), Planning with diffusion for flexible behavior synthesis. A. Ajay et al. (2023), Is
    conditional generative modeling all you need for decision-making? (returns and skills by classifier-free guidance).
    Clean known coordinates beside noised ones: Y. Tashiro et al. (2021), CSDI.

    Example:
        >>> import torch
        >>> from boltzmix.models.nets import TemporalUNet
        >>> about = {"horizon": 8, "state": ["x", "y"], "loc": [0, 0], "scale": [1, 1]}
        >>> p = TrajectoryDiffusion(TemporalUNet(2, hidden=(8, 8)), (8, 2), trajectory=about)
        >>> known = torch.zeros(8, 2, dtype=torch.bool)
        >>> known[0] = True
        >>> p.conditioned_on(known).score(torch.ones(1, 8, 2), 1.0)[0, :2].round(decimals=3).tolist()
        [[0.0, 0.0], [-0.5, -0.5]]
    """

    mask: Tensor | None
    importance: Tensor

    def __init__(
        self,
        net: nn.Module,
        event_shape: Sequence[int],
        *,
        trajectory: Mapping[str, Any],
        patterns: Mapping[str, float] | None = None,
        lengths: Sequence[int] = (),
        crops: float = 0.25,
        importance: Sequence[float] = (),
        sigma_data: float = 1.0,
        **options: Any,
    ) -> None:
        """Check that the network, the shape and the description of the trajectories agree."""
        self._check_trajectory(trajectory, tuple(event_shape))
        super().__init__(net, event_shape, sigma_data=sigma_data, **options)
        if self.parameterization != "edm" or self.schedule is not None:
            raise ValueError(
                f"trajectory models use EDM's preconditioning, got parameterization={self.parameterization!r} and "
                f"schedule={self.schedule!r}; leave both out"
            )
        if not getattr(net, "masked", True):
            raise ValueError("the network was built with masked=False and could not be told what is known")
        if self.weight not in ("own", "edm"):
            raise ValueError(f"trajectory models are trained with EDM's weights, got weight={self.weight!r}")
        if not 0 <= crops <= 1:
            raise ValueError(f"crops is a share of batches in [0, 1], got {crops}")
        if bool((self.core.loc != self.core.loc[:1]).any()):
            raise ValueError("loc is one number, or one for each column (D,): it must not depend on the token")
        self.core.loc = self.core.loc[:1].clone()  # serves every length
        self.trajectory = dict(trajectory)
        self.patterns = KnownPatterns(trajectory, patterns)
        self.lengths = tuple(int(length) for length in lengths)
        self.crops = float(crops)
        weights = tuple(float(weight) for weight in importance) or (1.0,) * self.event_shape[1]
        if len(weights) != self.event_shape[1] or not all(0 < weight < math.inf for weight in weights):
            raise ValueError(
                f"importance is one positive number for each of {self.event_shape[1]} columns, got {importance!r}"
            )
        self.register_buffer("importance", torch.tensor(weights) / sum(weights) * len(weights), persistent=False)
        for length in (self.event_shape[0], *self.lengths):
            self._check_length(length)
            if length > self.event_shape[0]:
                raise ValueError(f"lengths are windows of the data's {self.event_shape[0]} tokens, got {length}")
        self.register_buffer("mask", None, persistent=False)
        self._known: Hashable = None

    @staticmethod
    def _check_trajectory(trajectory: Mapping[str, Any], shape: tuple[int, ...]) -> None:
        if not isinstance(trajectory, Mapping) or "horizon" not in trajectory or "state" not in trajectory:
            raise ValueError(
                'trajectory describes the tokens, {"horizon": H, "state": ["x", …], "action": […], "dt": seconds, '
                f'"loc": […], "scale": […], …}}; got {trajectory!r}'
            )
        state, action = tuple(trajectory["state"]), tuple(trajectory.get("action", ()))
        if shape != (trajectory["horizon"], len(state) + len(action)):
            raise ValueError(
                f"event_shape is (H, D) = ({trajectory['horizon']}, {len(state) + len(action)}) for this trajectory, "
                f"got {shape}"
            )
        missing = [name for name in trajectory.get("position", ("x", "y")) if name not in state]
        if missing:
            raise ValueError(f"position names columns of the state {state}, got {missing}")
        for what in ("loc", "scale"):
            if len(trajectory.get(what, ())) not in (0, shape[1]):
                raise ValueError(f"{what} has one number for each of {shape[1]} columns, got {trajectory[what]!r}")

    def _check_length(self, length: int) -> None:
        factor = getattr(self.core.net, "factor", 1)
        if isinstance(length, bool) or not isinstance(length, int) or length < factor or length % factor:
            raise ValueError(f"this network takes lengths that are multiples of {factor}, got {length!r}")

    # ------------------------------------------------------------------ views

    def conditioned_on(self, mask: Any) -> Self:
        """p(free | known; σ): a view of the same network, over whole trajectories whose known coordinates are clean.

        The known values are those of the x that the view is evaluated at. Its score is 0 at known coordinates, so
        denoising and moving leave them as they are.

        Args:
            mask: boolean ``(H, D)``, True where a coordinate is known; nothing known gives the joint model.

        Raises:
            TypeError: a mask that is not boolean.
            ValueError: another shape, nothing left free, or a view that is conditioned already.
        """
        if self._known is not None:
            raise ValueError("this term is conditioned on known coordinates already; ask the model it came from")
        found = torch.as_tensor(mask)
        if found.dtype != torch.bool:
            raise TypeError(f"a mask of known coordinates is boolean, got {found.dtype}")
        if tuple(found.shape) != self.event_shape:
            raise ValueError(f"a mask of known coordinates has shape {self.event_shape}, got {tuple(found.shape)}")
        if bool(found.all()):
            raise ValueError("every coordinate is known: there is nothing left to sample")
        if not bool(found.any()):
            return self
        view = self._view()
        view.mask = found.to(self._weights().device)
        view._known = found.cpu().numpy().tobytes()
        return view

    def resized(self, horizon: int) -> Self:
        """The same model over another number of tokens; lengths it was not trained on extrapolate.

        Raises:
            ValueError: a length that the network does not take, or a view with known coordinates.
        """
        self._check_length(horizon)
        if self._known is not None:
            raise ValueError("known coordinates belong to one length: resize the model, then call conditioned_on()")
        view = self._view()
        view.variables = Variable((horizon, self.event_shape[1]))
        view.trajectory = {**self.trajectory, "horizon": horizon}
        return view

    def key(self) -> Hashable:
        """The network, what it is told, what is known, and the length."""
        return (super().key(), self._known, self.event_shape[0])

    def extra_repr(self) -> str:
        """The condition and the number of known coordinates, where there are any."""
        known = [] if self.mask is None else [f"{int(self.mask.sum())} known coordinates"]
        return ", ".join([said for said in [super().extra_repr()] if said] + known)

    # ------------------------------------------------------------- evaluation

    def _inputs(self, views: Sequence[Denoiser], coordinates: Sequence[Coordinates], x: Tensor) -> Tensor:
        tall = []
        for view, c in zip(views, coordinates, strict=True):
            values = c.centred / expand_rows(c.spread, x)
            known: Tensor | None = view.mask  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
            if known is None:
                tall.append(torch.cat([values, torch.zeros_like(values)], -1))
            else:
                values = torch.where(known, c.centred / view.core.sigma_data, values)
                tall.append(torch.cat([values, known.to(values).expand_as(values)], -1))
        return torch.cat(tall)

    def _evaluate_views(
        self, views: Sequence[Denoiser], x: Tensor, sigma: Tensor | None, energy: bool, score: bool
    ) -> list[Evaluated]:
        found = super()._evaluate_views(views, x, sigma, energy, score)
        if not score:
            return found
        masks: list[Any] = [view.mask for view in views]
        return [
            (None, value if known is None else torch.where(known, 0.0, value))  # pyright: ignore[reportCallIssue, reportArgumentType]
            for (_, value), known in zip(found, masks, strict=True)
        ]

    def _stack_rows(self, terms: Sequence[Term], n: int) -> Term | None:
        if any(getattr(term, "_known", None) != self._known for term in terms):
            return None
        return super()._stack_rows(terms, n)

    def _coarse(self, sigma: Tensor) -> "Gaussian":
        if self.mask is None:
            return super()._coarse(sigma)
        from boltzmix.compose.gaussian import Gaussian

        # the known values are the caller's, so there is nothing to centre on but the data
        return Gaussian(self.core.loc.expand(self.event_shape).clone(), float(sigma) ** 2 + self.core.sigma_data**2)

    # --------------------------------------------------------------- training

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean training loss of a batch, ``x`` or ``(x, rows)``; all randomness comes from ``generator``."""
        x0, rows = self._training_batch(batch, generator)
        if rows is not None and rows.shape[1] > 1 and self.dropout > 0:
            hidden = torch.rand(rows.shape, generator=generator, device=rows.device) < self.dropout
            rows = torch.where(hidden, NULL, rows)
        x0 = self._window(x0, generator) - self.core.loc
        known = self.patterns(len(x0), x0.shape[1], generator)
        sigma = self._draw_levels(len(x0), generator, x0)
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
        return self._free_loss(x0, noise, sigma, rows, known)

    def _free_loss(self, x0: Tensor, noise: Tensor, sigma: Tensor, rows: Tensor | None, known: Tensor) -> Tensor:
        """Mean squared error of the network's output over free coordinates, ``()``; x0 is centred."""
        core, level = self.core, expand_rows(sigma, x0)
        values = torch.where(known, x0 / core.sigma_data, (x0 + level * noise) / core.spread(level))
        out = core(torch.cat([values, known.to(values)], -1), sigma, [rows])
        error = out * (core.gain(level) * level / core.sigma_data) - self._target(x0, noise, sigma)
        weight = (~known).to(error) * self.importance.to(error)
        return (error.square() * weight).sum() / weight.sum()

    def _window(self, x0: Tensor, generator: torch.Generator) -> Tensor:
        """The whole trajectories, or one window of them all, of a shorter length."""
        if not self.lengths:
            return x0
        device = generator.device
        if float(torch.rand((), generator=generator, device=device)) >= self.crops:
            return x0
        length = self.lengths[int(torch.randint(len(self.lengths), (), generator=generator, device=device))]
        first = int(torch.randint(x0.shape[1] - length + 1, (), generator=generator, device=device))
        return x0[:, first : first + length]
