"""A small convolutional classifier: the held-out judge of class-conditional samples."""

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """``(N, C, H, W)`` to class probabilities; trained by cross-entropy on shifted, scaled and noised copies.

    Args:
        channels: image channels.
        num_classes: number of labels.
        hidden: features of the two stages.
        size: height and width, a multiple of 4.
        shift: largest shift in pixels of the training copies.
        noise: largest standard deviation of the noise added to them.
        background: value of the pixels that a shift brings in.

    Example:
        >>> import torch
        >>> Classifier(hidden=(4, 8)).predict(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        channels: int = 1,
        num_classes: int = 10,
        hidden: tuple[int, int] = (24, 48),
        size: int = 8,
        shift: int = 1,
        noise: float = 0.3,
        background: float = -1.0,
    ) -> None:
        """Build the network."""
        super().__init__()
        self.channels, self.num_classes, self.size = channels, num_classes, size
        self.shift, self.noise, self.background = shift, noise, background
        a, b = hidden
        self.features = nn.Sequential(
            nn.Conv2d(channels, a, 3, padding=1),
            nn.GroupNorm(4, a),
            nn.SiLU(),
            nn.Conv2d(a, a, 3, padding=1),
            nn.GroupNorm(4, a),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(a, b, 3, padding=1),
            nn.GroupNorm(4, b),
            nn.SiLU(),
            nn.MaxPool2d(2),
        )
        self.last = nn.Linear(b * (size // 4) ** 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, num_classes)``."""
        if x.shape[1:] != (self.channels, self.size, self.size):
            want = (self.channels, self.size, self.size)
            raise ValueError(f"the classifier takes (N, {', '.join(map(str, want))}), got {tuple(x.shape)}")
        return self.last(self.features(x).flatten(1))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probabilities ``(N, num_classes)``, without a graph."""
        with torch.no_grad():
            return self(x).log_softmax(1)

    def predict(self, x: Tensor) -> Tensor:
        """Most probable label per image, ``(N,)``."""
        return self.log_prob(x).argmax(1)

    def loss(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        """Cross-entropy, with label smoothing, of augmented images."""
        x, label = batch
        return nn.functional.cross_entropy(self(self._augment(x, generator)), label, label_smoothing=0.05)

    def _augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = x.shape
        device = x.device
        padded = nn.functional.pad(x, [self.shift] * 4, value=self.background)
        offsets = torch.randint(0, 2 * self.shift + 1, (2, n, 1), generator=generator, device=device)
        keep = torch.rand(n, generator=generator, device=device) < 0.5  # half of the copies stay in place
        offsets = torch.where(keep[None, :, None], self.shift, offsets)
        rows = offsets[0] + torch.arange(height, device=device)
        columns = offsets[1] + torch.arange(width, device=device)
        index = torch.arange(n, device=device)[:, None, None]
        moved = padded.movedim(1, 3)[index, rows[:, :, None], columns[:, None, :]].movedim(3, 1)
        level = self.noise * torch.rand(n, 1, 1, 1, generator=generator, device=device)
        return moved + level * torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype)
