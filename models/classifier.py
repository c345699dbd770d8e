r"""Classifiers: :math:`p(c \mid x)` as a factor, and guidance by it, :math:`p(x \mid c) \propto p(x)\, p(c \mid x)`.

A classifier is a density of the label c given x, so it integrates to one over c and not over x. Three uses:

``classifier``
    the factor p(c | x) over two variables, ``"x"`` and the integer ``"label"``: ``p.on("x") * classifier`` is the
    joint density, normalised where p is.
``classifier.given(label=3)``
    the same with the label frozen: a factor :math:`x \mapsto p(3 \mid x)`, static and below one everywhere. Bayes' rule
    is the product ``p * classifier.given(label=3)``, whose log Z is log p(3) where p is normalised.
``Denoised(classifier.given(label=3), p)``
    the factor at the denoised estimate of a noised prior: guidance with a classifier of clean data.

**Noise-aware.** With ``sigma_range`` the network sees the level and is trained on :math:`x_0 + \sigma\varepsilon`. The
minimiser of its cross-entropy at σ is

.. math:: p(c \mid x; \sigma) = E[\,p(c \mid x_0) \mid x_\sigma = x\,],
          \qquad p(x; \sigma)\, p(c \mid x; \sigma) = p(c) \int p(x_0 \mid c)\, N(x; x_0, \sigma^2 I)\, dx_0,

so the guided score is that of the conditional's own noised density, and reverse diffusion on it is exact. The algebra
cannot know that a network has reached this minimum for this prior: the factor is called annealed, and so is every
product with it. A *clean* classifier at x, or at the denoised estimate, is not that density at σ > 0; SMC's weights
correct for it.

Source: P. Dhariwal, A. Nichol (2021), Diffusion models beat GANs on image synthesis. Y. Song et al. (2021), Score-based
generative modeling through stochastic differential equations (section 5).
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from boltzmix.compose.term import Evaluated, Term
from boltzmix.compose.variable import Sigma, Variable, check_state, expand_rows, integers
from boltzmix.models.labels import Labelled
from boltzmix.models.nets.logits import LogitsConv, LogitsMLP
from boltzmix.models.wrapped import Wrapped


class Classifier(Labelled):
    r"""The factor :math:`p(c \mid x) = \mathrm{softmax}(\mathrm{net}(x))_c` (see the module's page).

    Args:
        net: ``net(x) -> (N, K)`` logits, a module or a function; over noise levels ``net(x / s, ln(σ)/4)`` with
            :math:`s = \sqrt{\sigma^2 + \sigma_d^2}`. None builds :class:`~boltzmix.models.nets.LogitsConv` for images
            and :class:`~boltzmix.models.nets.LogitsMLP` for vectors.
        event_shape: shape of one x.
        num_classes: K.
        sigma_range: noise levels of a noise-aware classifier, ``sigma=None`` meaning the smallest; None for a
            classifier of clean data, whose factor is static.
        sigma_data: σ_d, the standard deviation of the data; it only scales the input of a noise-aware network.
        hidden: features of the network that is built for you.
        shift: largest shift in pixels of the training copies (images only).
        noise: largest standard deviation of the noise added to the training copies of a clean classifier.
        background: value of the pixels that a shift brings in.
        smoothing: label smoothing. With any of the last four set, the minimiser is the posterior of the altered data;
            by default the loss is the plain cross-entropy, whose minimiser is p(c | x).

    Raises:
        ValueError: numbers out of range, labels that the classifier does not know, logits of another shape.
        TypeError: x in another dtype than the network.

    Example:
        >>> import torch
        >>> from boltzmix.compose import Gaussian
        >>> right = Classifier(lambda x: torch.cat([-x, x], 1), (1,), 2)      # p(c = 1 | x) = sigmoid(2x)
        >>> posterior = Gaussian(torch.zeros(1), 1.0) * right.given(label=1)
        >>> posterior.score(torch.zeros(1, 1)).tolist()
        [[1.0]]
        >>> Classifier(event_shape=(2,), num_classes=3).predict(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    calibrated = True

    def __init__(
        self,
        net: nn.Module | Callable[..., Tensor] | None = None,
        event_shape: Sequence[int] = (1, 8, 8),
        num_classes: int = 10,
        *,
        sigma_range: tuple[float, float] | None = None,
        sigma_data: float = 0.5,
        hidden: Sequence[int] | None = None,
        shift: int = 0,
        noise: float = 0.0,
        background: float = -1.0,
        smoothing: float = 0.0,
    ) -> None:
        """Check the numbers and take, or build, the network."""
        super().__init__()
        shape = tuple(int(s) for s in event_shape)
        if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 2:
            raise ValueError(f"a classifier tells num_classes >= 2 labels apart, got {num_classes!r}")
        if not 0 < sigma_data < math.inf:
            raise ValueError(f"sigma_data is a number > 0, got {sigma_data!r}")
        if isinstance(shift, bool) or not isinstance(shift, int) or shift < 0 or (shift and len(shape) != 3):
            raise ValueError(f"shift is a number of pixels >= 0, for images (C, H, W) only; got {shift!r} for {shape}")
        if not 0 <= noise < math.inf or not 0 <= smoothing < 1:
            raise ValueError(f"noise >= 0 and smoothing in [0, 1) are wanted, got {noise!r} and {smoothing!r}")
        if net is not None and hidden is not None:
            raise ValueError("hidden is for the network that is built for you; the one you passed has its own")
        self._x = Variable(shape)
        self.variables = {"x": self._x, "label": Variable((), integers(num_classes))}
        self.normalized_over = frozenset({"label"})
        self.noise_aware = sigma_range is not None
        if sigma_range is not None:
            low, high = (float(level) for level in sigma_range)
            if not 0 < low < high < math.inf:
                raise ValueError(f"sigma_range is (low, high) with 0 < low < high < inf, got {tuple(sigma_range)}")
            if noise:
                raise ValueError("a noise-aware classifier is trained on noise of every level: leave out noise=")
            self.sigma_range = (low, high)
            self.path = "annealed"
            self.path_reason = "a classifier over noise levels is no convolution"
        self._take_labels(num_classes, 0.0)
        self.sigma_data = float(sigma_data)
        self.shift, self.noise, self.background, self.smoothing = shift, float(noise), background, smoothing
        if net is None:
            self.core = self._default(shape, num_classes, hidden)
        elif isinstance(net, nn.Module):
            self.core = net
        elif callable(net):
            self.core = Wrapped(net)
        else:
            raise TypeError(f"net is a module or a function that returns logits, got {type(net).__name__}")

    def _default(self, shape: tuple[int, ...], classes: int, hidden: Sequence[int] | None) -> nn.Module:
        aware = self.noise_aware
        if len(shape) == 1:
            return LogitsMLP(shape[0], classes, (64, 64) if hidden is None else hidden, noise_aware=aware)
        if len(shape) == 3 and shape[1] == shape[2]:
            widths = (24, 48) if hidden is None else hidden
            return LogitsConv(shape[0], classes, widths, shape[1], noise_aware=aware)
        raise ValueError(f"a network is built for vectors (D,) and square images (C, H, H); pass net= for {shape}")

    # ------------------------------------------------------------- probabilities

    def logits(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """What the network says, ``(N, K)``, up to a constant per row."""
        check_state(x, self._x, self.name())
        return self._logits(x, None if sigma is None else self._check_level(sigma, x, x.shape[0]))  # pyright: ignore[reportArgumentType]

    def log_posterior(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """log p(c | x) for every label, ``(N, K)``; at the noise level σ for a noise-aware classifier."""
        return self.logits(x, sigma).log_softmax(1)

    def predict(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Most probable label per row, ``(N,)``."""
        with torch.no_grad():
            return self.logits(x, sigma).argmax(1)

    def _logits(self, x: Tensor, sigma: Tensor | None) -> Tensor:
        if next(iter((*self.core.parameters(), *self.core.buffers())), None) is not None:  # a function takes any dtype
            self._match(x)
        if self.noise_aware:
            level = x.new_tensor(self.sigma_range[0]) if sigma is None else sigma
            scale = (level**2 + self.sigma_data**2).sqrt()
            out = self.core(x / expand_rows(scale, x), (level.log() / 4).expand(x.shape[0]))
        else:
            out = self.core(x)
        if not isinstance(out, Tensor) or tuple(out.shape) != (x.shape[0], self.num_classes):
            came = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"the network of {self.name()} returns logits ({x.shape[0]}, {self.num_classes}), got {came}"
            )
        if torch.is_autocast_enabled(x.device.type):
            return out.to(x.dtype)  # mixed precision: probabilities are computed in the dtype of x
        if out.dtype != x.dtype:
            raise TypeError(
                f"the network of {self.name()} returned {out.dtype} for x of {x.dtype}; convert one of them"
            )
        return out

    # --------------------------------------------------------------------- hooks

    def _given(self, **condition: object) -> Self:
        twin = super()._given(**condition)
        twin.variables, twin.normalized_over = self._x, None
        return twin

    def key(self) -> Hashable:
        """The network, its coordinates, and the frozen label."""
        return (*self._network_key(), self._identity)

    def _network_key(self) -> tuple[Hashable, ...]:
        core = self.core.fn if isinstance(self.core, Wrapped) else self.core
        return (type(self).__name__, id(core), self.num_classes, self._x.shape, self.sigma_data, self.sigma_range)

    def _group(self) -> Hashable | None:
        return None if isinstance(self.variables, Mapping) else self._network_key()

    def _chosen(self, log_posterior: Tensor) -> Tensor:
        """log p(label | x) of this view, ``(N,)``."""
        labels = self._label_rows(log_posterior.shape[0], log_posterior.device)
        assert labels is not None
        return log_posterior.gather(1, labels[:, None])[:, 0]

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        if isinstance(x, Tensor):
            return self._chosen(self._logits(x, sigma).log_softmax(1)).neg()
        label = x["label"].long()
        assert self.num_classes is not None
        if label.numel() and not (int(label.min()) >= 0 and int(label.max()) < self.num_classes):
            raise ValueError(f"labels are ints in [0, {self.num_classes}), got {sorted(set(label.tolist()))[:8]}")
        level = sigma.get("x") if isinstance(sigma, Mapping) else sigma
        return self._logits(x["x"], level).log_softmax(1).gather(1, label[:, None])[:, 0].neg()

    def _energy_and_score(self, x: Any, sigma: Any) -> Any:
        if isinstance(x, Tensor):
            return self._views([self], x, sigma)[0]
        return super()._energy_and_score(x, sigma)

    def _evaluate_together(
        self, terms: Sequence[Term], x: Any, sigma: Any, energy: bool, score: bool
    ) -> list[Evaluated]:
        views: Any = terms
        if score:
            return [(e if energy else None, s) for e, s in self._views(views, x, sigma)]
        rows = self._logits(x, sigma).log_softmax(1)
        return [(view._chosen(rows).neg() if energy else None, None) for view in views]

    def _views(self, views: "Sequence[Classifier]", x: Tensor, sigma: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Energies and scores of several labels: one forward of N rows for all, one backward for each."""
        keep = torch.is_grad_enabled() and self._needs_graph(x)
        with torch.enable_grad():
            leaf = x if keep and x.requires_grad else x.detach().requires_grad_()
            rows = self._logits(leaf, sigma).log_softmax(1)
            found = []
            for i, view in enumerate(views):
                chosen = view._chosen(rows)
                if not chosen.requires_grad:
                    raise ValueError(
                        f"{self.name()}: the logits carry no gradient; compute them with torch operations on x, "
                        "outside no_grad(), without detach() or numpy"
                    )
                more = keep or i + 1 < len(views)
                (slope,) = torch.autograd.grad(
                    chosen.sum(), leaf, retain_graph=more, create_graph=keep, allow_unused=True
                )
                energy = chosen.neg() if keep else chosen.neg().detach()
                found.append((energy, torch.zeros_like(x) if slope is None else slope))
        return found

    def _strength(self, sigma: Tensor) -> float:
        return 0.0  # a probability of c holds no state, at any level

    def _coarse(self, sigma: Tensor) -> Any:
        raise TypeError(f"{self.name()} has no coarse form: it is a factor; ask its prior")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Weights of the convolutional network as they were named before classifiers were terms, too."""
        for name in list(state_dict):
            if name.startswith((f"{prefix}features.", f"{prefix}last.")):
                state_dict[f"{prefix}core.{name[len(prefix) :]}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    # ------------------------------------------------------------------ training

    def loss(self, batch: Any, generator: torch.Generator) -> Tensor:
        """Mean cross-entropy of a batch ``(x, label)``, over log-uniform noise levels for a noise-aware classifier."""
        if isinstance(batch, Tensor) or len(batch) != 2:
            raise ValueError("a classifier is trained on pairs: a batch is (x, label)")
        x, label = batch
        check_state(x, self._x, f"the batch of {self.name()}")
        if label.shape != x.shape[:1] or label.is_floating_point() or label.dtype == torch.bool:
            raise ValueError(f"labels are ints of shape ({len(x)},), got {label.dtype} of shape {tuple(label.shape)}")
        label, sigma = label.long(), None
        assert self.num_classes is not None
        if len(label) and not 0 <= int(label.min()) <= int(label.max()) < self.num_classes:
            raise ValueError(f"labels are ints in [0, {self.num_classes}), got {int(label.min())} … {int(label.max())}")
        if self.shift:
            x = self._shifted(x, generator)
        if self.noise_aware:
            low, high = (math.log(level) for level in self.sigma_range)
            u = torch.rand(len(x), generator=generator, device=x.device, dtype=torch.float64)
            sigma = (low + (high - low) * u).exp().to(x)
        elif self.noise:
            sigma = self.noise * torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype)
        if sigma is not None:
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = x + expand_rows(sigma, x) * noise
        logits = self._logits(x, sigma if self.noise_aware else None)
        return nn.functional.cross_entropy(logits, label, label_smoothing=self.smoothing)

    def _shifted(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Copies of images, half of them moved by up to ``shift`` pixels in each direction."""
        n, _, height, width = x.shape
        device = x.device
        padded = nn.functional.pad(x, [self.shift] * 4, value=self.background)
        offsets = torch.randint(0, 2 * self.shift + 1, (2, n, 1), generator=generator, device=device)
        keep = torch.rand(n, generator=generator, device=device) < 0.5  # half of the copies stay in place
        offsets = torch.where(keep[None, :, None], self.shift, offsets)
        rows = offsets[0] + torch.arange(height, device=device)
        columns = offsets[1] + torch.arange(width, device=device)
        index = torch.arange(n, device=device)[:, None, None]
        return padded.movedim(1, 3)[index, rows[:, :, None], columns[:, None, :]].movedim(3, 1)
