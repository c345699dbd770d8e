"""Networks: shapes, the null class, smoothness in the noise level, no hidden randomness."""

import pytest
import torch

from boltzmix.models.nets import MLP, DiT, EnergyMLP, UNet
from boltzmix.models.nets.dit import Block, waves
from boltzmix.models.nets.unet import Attention

NETS = {
    "mlp": (lambda: MLP(3, hidden=8, num_classes=2), (3,)),
    "scalar mlp": (lambda: MLP(3, hidden=8, num_classes=2, out=1), (3,)),
    "unet": (lambda: UNet(2, hidden=(8, 16), num_classes=2, attention=True), (2, 8, 8)),
    "attending unet": (lambda: UNet(1, hidden=(8, 8, 16), attention=(0, 2), heads=2, num_classes=2), (1, 8, 8)),
    "dit": (lambda: DiT(2, size=(4, 6), patch=2, width=16, depth=2, heads=2, num_classes=2), (2, 4, 6)),
    "deep unet": (lambda: UNet(1, hidden=(8, 8, 16), blocks=2, num_classes=2), (1, 8, 8)),
}


def excite(net):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return net.double()


@pytest.mark.parametrize(("make", "shape"), NETS.values(), ids=NETS)
def test_rows_do_not_see_each_other(make, shape):
    net = excite(make())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    c_noise, label = torch.linspace(-1, 1, 4).double(), torch.tensor([0, 1, -1, 0])
    whole = net(x, c_noise, label)
    assert whole.shape == ((4, 1) if net.scalar else x.shape)
    for i in range(4):
        torch.testing.assert_close(net(x[i : i + 1], c_noise[i : i + 1], label[i : i + 1]), whole[i : i + 1])


@pytest.mark.parametrize(("make", "shape"), NETS.values(), ids=NETS)
def test_noise_level_and_label_matter_and_none_is_the_null_class(make, shape):
    net = excite(make())
    x = torch.ones(1, *shape, dtype=torch.float64)
    c = torch.zeros(1, dtype=torch.float64)
    null, zero, one = (net(x, c, torch.tensor([k])) for k in (-1, 0, 1))
    assert torch.equal(net(x, c), null)
    assert not torch.allclose(null, zero)
    assert not torch.allclose(one, zero)
    assert not torch.allclose(net(x, c + 0.5), null)


@pytest.mark.parametrize(("make", "shape"), NETS.values(), ids=NETS)
def test_starts_at_zero_so_that_the_model_starts_gaussian(make, shape):
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.count_nonzero(make()(x, torch.zeros(3))) == 0


@pytest.mark.parametrize(("make", "shape"), NETS.values(), ids=NETS)
def test_second_derivatives_and_every_parameter_takes_part(make, shape):
    net = excite(make())
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    out = net(x, torch.zeros(2, dtype=torch.float64), torch.tensor([0, 1]))
    (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_skips_carry_what_the_coarse_path_does_not():
    net = excite(UNet(1, hidden=(8, 16)))
    with torch.no_grad():
        net.grow[0].weight.zero_()
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(net(x, torch.zeros(1, dtype=torch.float64)).square().sum(), x)
    assert slope.abs().min() > 0


def test_attention_is_scaled_dot_product_attention():
    block = excite(Attention(8, heads=2, groups=2))
    h = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, k, v = block.qkv(block.norm(h).flatten(2)).reshape(3, 3, 2, 4, 16).mT.unbind(1)
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).mT.reshape(3, 8, 16)
    torch.testing.assert_close(block(h), h + block.project(mixed).reshape(h.shape))


def test_attention_at_chosen_resolutions_is_a_superset_of_none():
    """The keys of a network without attention stay what they were, and each choice adds its own."""
    plain = set(UNet(1, hidden=(8, 8, 16)).state_dict())
    for attention, prefixes in (((), ()), (True, ("attention",)), ((2,), ("attention",)), ((0, 1), ("attend_",))):
        extra = set(UNet(1, hidden=(8, 8, 16), attention=attention).state_dict()) - plain
        assert all(key.startswith(prefixes) for key in extra)
        assert bool(extra) == bool(prefixes)
    assert len(UNet(1, hidden=(8, 8, 16), attention=(0, 1, 2)).attend_up) == 2


def test_attention_at_the_finest_resolution_sees_the_whole_image():
    for attention, whole in (((0,), True), (False, False)):
        net = excite(UNet(1, hidden=(8,), attention=attention))
        x = torch.randn(1, 1, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
        with torch.no_grad():  # norms see everything too: leave them out
            before = net(x, torch.zeros(1, dtype=torch.float64))
        assert before.shape == x.shape
        h = net.first(x)
        h = net.attend_down["0"](h) if "0" in net.attend_down else (net.attention(h) if net.attention else h)
        (slope,) = torch.autograd.grad(h[0, :, 0, 0].sum(), x)
        assert bool(slope[0, 0, -1, -1] != 0) == whole


def test_dits_attention_is_scaled_dot_product_attention():
    block = excite(Block(8, heads=2, expansion=2))
    h = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, k, v = (part.reshape(3, 5, 2, 4).transpose(1, 2) for part in block.qkv(h).chunk(3, 2))
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(3, 5, 8)
    torch.testing.assert_close(block._attend(h), block.project(mixed))


def dit_blocks_start_as_the_identity():
    net = DiT(1, size=8, patch=2, width=16, depth=2, heads=2).double()
    h = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    embedding = torch.randn(3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for block in net.blocks:
        assert torch.equal(block(h, embedding), h)


def test_dits_blocks_start_as_the_identity():
    dit_blocks_start_as_the_identity()


def dit_patches_go_back_where_they_came_from():
    """While the blocks are the identity, a pixel of the output depends on its own patch alone."""
    net = DiT(2, size=(4, 6), patch=2, width=16, depth=1, heads=2)
    torch.nn.init.normal_(net.last.weight)
    net = net.double()
    x = torch.randn(1, 2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    out = net(x, torch.zeros(1, dtype=torch.float64))
    for i, j in ((0, 0), (1, 5), (3, 2)):
        (slope,) = torch.autograd.grad(out[0, 1, i, j], x, retain_graph=True)
        touched = {(a // 2, b // 2) for _, a, b in torch.nonzero(slope[0]).tolist()}
        assert touched == {(i // 2, j // 2)}
    # and pixels of a patch keep their order: a last layer that copies a patch's features returns them in place
    for layer, weight in ((net.first, torch.eye(8).reshape(8, 2, 2, 2)), (net.last, None)):
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]
            if weight is None:
                layer.weight[:, :8] = torch.eye(8)
            else:
                layer.weight[:8] = weight
    net.positions = torch.zeros_like(net.positions)
    net.norm = torch.nn.Identity()
    torch.testing.assert_close(net(x, torch.zeros(1, dtype=torch.float64)), x)


def test_dits_patches_go_back_where_they_came_from():
    dit_patches_go_back_where_they_came_from()


def test_positions_tell_every_patch_apart():
    features = waves(3, 4, 16)
    assert features.shape == (12, 16)
    assert float((torch.cdist(features, features) + torch.eye(12)).min()) > 0.1


def test_wrong_networks():
    for arguments, words in (
        ({"patch": 3}, "patch"),
        ({"width": 18, "heads": 3}, "multiple of 4"),
        ({"width": 16, "heads": 3}, "heads"),
        ({"depth": 0}, "depth"),
    ):
        with pytest.raises(ValueError, match=words):
            DiT(1, **arguments)
    with pytest.raises(ValueError, match="built for images"):
        DiT(1, width=16)(torch.zeros(1, 1, 4, 4), torch.zeros(1))
    with pytest.raises(ValueError, match=r"MLP\(2\) takes vectors \(N, 2\), got \(1, 1, 4, 4\); use UNet or DiT"):
        MLP(2)(torch.zeros(1, 1, 4, 4), torch.zeros(1))
    with pytest.raises(ValueError, match=r"EnergyMLP\(2\) takes vectors \(N, 2\), got \(1, 3\); use EnergyConv"):
        EnergyMLP(2)(torch.zeros(1, 3))
    for x in (torch.zeros(1, 3, 8, 8), torch.zeros(1, 2)):
        with pytest.raises(ValueError, match=r"UNet\(1\) takes images \(N, 1, H, W\), got"):
            UNet(1)(x, torch.zeros(1))
    with pytest.raises(TypeError, match="num_classes"):
        DiT(1, width=16)(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1).long())
    with pytest.raises(ValueError, match="names resolutions"):
        UNet(1, hidden=(8, 16), attention=(2,))
    with pytest.raises(TypeError, match="num_classes"):
        MLP(2)(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1).long())
    with pytest.raises(ValueError, match="multiples of 2"):
        UNet(1, hidden=(8, 16))(torch.zeros(1, 1, 7, 8), torch.zeros(1))
    with pytest.raises(ValueError, match="heads"):
        UNet(1, hidden=(8, 10), attention=True, heads=4)
