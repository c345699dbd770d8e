"""Networks: shapes, the null class, smoothness in the noise level, no hidden randomness."""

import pytest
import torch

from boltzmix.models.nets import MLP, UNet
from boltzmix.models.nets.unet import Attention

NETS = {
    "mlp": (lambda: MLP(3, hidden=8, num_classes=2), (3,)),
    "scalar mlp": (lambda: MLP(3, hidden=8, num_classes=2, out=1), (3,)),
    "unet": (lambda: UNet(2, hidden=(8, 16), num_classes=2, attention=True), (2, 8, 8)),
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


def test_wrong_networks():
    with pytest.raises(TypeError, match="num_classes"):
        MLP(2)(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1).long())
    with pytest.raises(ValueError, match="multiples of 2"):
        UNet(1, hidden=(8, 16))(torch.zeros(1, 1, 7, 8), torch.zeros(1))
    with pytest.raises(ValueError, match="heads"):
        UNet(1, hidden=(8, 10), attention=True, heads=4)
