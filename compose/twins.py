"""Networks of one architecture evaluated by one ``vmap`` over their stacked parameters.

On a CPU this pays only for many small networks on few rows, where the cost of a call exceeds that of its
arithmetic; ``python -m boltzmix bench speed`` measures the ratio. Elsewhere a loop over networks is faster.
"""

import copy
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn

MIN_NETWORKS, MAX_ROWS = 8, 64


def twins_pay(networks: int, rows: int, device: torch.device) -> bool:
    """Whether stacking measured faster than a loop: at least 8 networks on at most 64 rows, on a CPU."""
    return networks >= MIN_NETWORKS and rows <= MAX_ROWS and device.type == "cpu"


def architecture(network: nn.Module) -> tuple[object, ...]:
    """Equal for networks whose parameters may be stacked: same modules, same shapes, no state but parameters."""
    state = tuple((name, tuple(t.shape), t.dtype) for name, t in network.state_dict().items())
    return (type(network), repr(network), state)


class Twins:
    """k networks of one architecture as one function of ``(k, N, …)`` inputs.

    The stacked copy is made anew when a parameter has changed since.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        """Remember the networks without keeping them alive."""
        self._networks = [weakref.ref(network) for network in networks]
        self._version: tuple[int, ...] = ()
        self._skeleton = copy.deepcopy(networks[0]).to("meta")

    def __call__(self, x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
        """``network_i(x[i], c_noise[i], label[i])`` for all i, stacked; differentiable in the inputs only."""
        from torch.func import functional_call, stack_module_state, vmap

        networks = [reference() for reference in self._networks]
        alive = [network for network in networks if network is not None]
        assert len(alive) == len(networks)
        tensors = [t for network in alive for t in (*network.parameters(), *network.buffers())]
        version = tuple(part for t in tensors for part in (t.data_ptr(), t._version))
        if version != self._version:
            parameters, buffers = stack_module_state(alive)  # pyright: ignore[reportArgumentType]
            self._state = ({name: p.detach() for name, p in parameters.items()}, buffers)
            self._version = version
            self._skeleton.train(alive[0].training)

        def one(state: tuple[dict[str, Tensor], dict[str, Tensor]], *inputs: Tensor) -> Tensor:
            arguments = inputs if len(inputs) == 3 else (*inputs, None)
            return functional_call(self._skeleton, state, arguments)

        inputs = (x, c_noise) if label is None else (x, c_noise, label)
        return vmap(one)(self._state, *inputs)


_stacks: dict[tuple[int, ...], Twins] = {}


def stacked(networks: Sequence[nn.Module]) -> Twins:
    """The :class:`Twins` of these networks, kept for the next call while they live."""
    key = tuple(id(network) for network in networks)
    if key not in _stacks:
        _stacks[key] = Twins(networks)
        for network in networks:
            weakref.finalize(network, _stacks.pop, key, None)
    return _stacks[key]
