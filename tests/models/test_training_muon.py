"""Muon: orthogonal steps for matrices, AdamW for the rest, the library's steps, resume, processes."""

import pytest
import torch

from boltzmix.models import Diffusion, data, fit
from boltzmix.models.nets import MLP, UNet
from boltzmix.models.training.muon import Muon

OPTIONS = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.99)}


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(3, 8)
        self.conv = torch.nn.Conv2d(2, 6, 3)
        self.linear = torch.nn.Linear(8, 4)


def small(seed=0):
    torch.manual_seed(seed)
    net = Small()
    generator = torch.Generator().manual_seed(seed + 1)
    gradients = [[torch.randn(p.shape, generator=generator) for p in net.parameters()] for _ in range(3)]
    return net, gradients


def stepped(net, optimizers, gradients):
    for step in gradients:
        for parameter, gradient in zip(net.parameters(), step, strict=True):
            parameter.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def test_matrices_take_the_librarys_steps_and_the_rest_adamws():
    net, gradients = small()
    own = stepped(net, [Muon(net, dict(net.named_parameters()), **OPTIONS)], gradients)
    net, gradients = small()
    rest = [net.table.weight, net.conv.bias, net.linear.bias]
    stepped(net, [torch.optim.AdamW(rest, **OPTIONS)], gradients)
    matrices = {"conv.weight": net.conv.weight, "linear.weight": net.linear.weight}
    flat = {key: torch.nn.Parameter(p.detach().flatten(1).clone()) for key, p in matrices.items()}
    muon = torch.optim.Muon(list(flat.values()), lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    names = [name for name, _ in net.named_parameters()]
    for step in gradients:
        for key, value in flat.items():
            value.grad = step[names.index(key)].flatten(1)
        muon.step()
    for name in ("table.weight", "conv.bias", "linear.bias"):
        assert torch.equal(own[name], dict(net.named_parameters())[name])
    for key, value in flat.items():
        torch.testing.assert_close(own[key].flatten(1), value.detach(), rtol=0, atol=0)


def test_a_step_moves_a_matrix_in_all_directions_alike():
    net, gradients = small()
    before = net.linear.weight.detach().clone()
    after = stepped(net, [Muon(net, dict(net.named_parameters()), lr=1e-2, weight_decay=0.0)], gradients[:1])
    lengths = torch.linalg.svdvals(after["linear.weight"] - before)
    wanted = 1e-2 * 0.2 * 8**0.5
    assert (lengths > 0.6 * wanted).all()  # the Newton–Schulz iteration ends between 0.7 and 1.2
    assert (lengths < 1.3 * wanted).all()


def test_schedules_reach_both_groups():
    net, gradients = small()
    optimizer = Muon(net, dict(net.named_parameters()), **OPTIONS)
    assert len(optimizer.param_groups) == 2
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    after = stepped(net, [optimizer], gradients)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_parameters_without_a_gradient_stay():
    net, _ = small()
    optimizer = Muon(net, dict(net.named_parameters()), **OPTIONS)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net.linear.weight.grad = torch.ones_like(net.linear.weight)
    optimizer.step()
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"linear.weight"}


def test_other_layouts_are_refused():
    net = torch.nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="weight is not: model.to"):
        Muon(net, dict(net.named_parameters()), **OPTIONS)


def pictures(n, generator):
    return torch.rand((n, 1, 8, 8), generator=generator)


def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path):
    def model():
        torch.manual_seed(0)
        return Diffusion(UNet(1, hidden=(4, 8)), (1, 8, 8))

    settings = {"batch_size": 4, "optimizer": "muon", "lr": 1e-2, "weight_decay": 0.1, "ema": 0.5, "log_every": 2}
    whole = fit(model(), pictures, steps=8, **settings)

    class Stop(Exception):
        pass

    def stopping(batch, generator):
        stopping.seen += 1
        if stopping.seen > 5:
            raise Stop
        return batch

    stopping.seen = 0
    file = tmp_path / "run.checkpoint"
    with pytest.raises(Stop):
        fit(model(), pictures, steps=8, **settings, transform=stopping, checkpoint=file, checkpoint_every=4)
    resumed = fit(model(), pictures, steps=8, **settings, transform=lambda batch, _: batch, checkpoint=file)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="optimizer: muon there, adamw here"):
        fit(model(), pictures, steps=8, **{**settings, "optimizer": "adamw"}, checkpoint=file)


class Regression(torch.nn.Module):
    """A linear map whose input has directions of very different length, as gradients of networks have."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
        self.scale = torch.logspace(0, -2, 8)

    def loss(self, batch, generator):
        return (self.layer(batch * self.scale) - batch.flip(1)).square().mean()


def test_it_trains():
    torch.manual_seed(0)
    source = torch.randn(512, 8, generator=torch.Generator().manual_seed(1))
    settings = {"steps": 150, "batch_size": 64, "lr": 0.3, "ema": 0.9, "log_every": 50}
    history = fit(Regression(), source, optimizer="muon", **settings).history
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


def test_unknown_optimizers_are_refused():
    with pytest.raises(ValueError, match="optimizer is one of 'adamw', 'muon', got 'sgd'"):
        fit(Diffusion(MLP(2, hidden=4), (2,)), data.ring, steps=1, optimizer="sgd")
