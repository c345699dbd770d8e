r"""Gradients of discrete variables: energies that also take floats between the integers.

The energy of many discrete models is a formula that a real argument satisfies as well: an Ising energy
:math:`-x^T J x / 2`, a Potts model of one-hot vectors, a restricted Boltzmann machine, a network over embeddings.
Its gradient with respect to the one-hot vectors :math:`u_i \in \{0, 1\}^K` of the state,
:math:`g_{ik} = -\partial E / \partial u_{ik}`, estimates how every change of one coordinate changes the log-density:

.. math:: \log p(x_{i \to k}) - \log p(x) \approx g_{ik} - g_{i x_i} .

It is exact for energies that are linear in each coordinate's vector, and costs one evaluation instead of
:math:`\sum_i (K_i - 1)`. A function says that it can be differentiated so::

    bm.term(fn, kind="energy", event_shape=(6, 6), support=integers(3), relaxed="one_hot")   # fn takes (N, 6, 6, 3)
    bm.term(fn, kind="energy", event_shape=(6, 6), support=integers(2), relaxed="values")    # fn takes (N, 6, 6)

With ``"values"`` the estimate is linear in the value, :math:`g_{ik} = -k\, \partial E / \partial x_i`: natural for two
values and for quadratic energies, a poor one for labels without an order. The term itself still takes integers, and a
function that is handed them gets floats of the dtype of its parameters, or else of torch's default. Products and
mixtures of relaxed terms are relaxed.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from boltzmix.compose.product import Composite
from boltzmix.compose.term import Term
from boltzmix.compose.variable import State, Variable, Variables
from boltzmix.compose.wrappers import Wrapper


def unrelaxed(term: Term) -> list[Term]:
    """The members of a formula that read integers and take no floats in their place."""
    if isinstance(term, Composite):
        return [inner for leaf in term._leaves() for inner in unrelaxed(leaf)]
    if isinstance(term, Wrapper):
        return unrelaxed(term.inner)
    own = term.variables
    reads = any(v.discrete for v in ([own] if isinstance(own, Variable) else own.values()))
    return [term] if reads and not getattr(term, "relaxed", None) else []


def to_one_hot(x: State, variables: Variables, dtype: torch.dtype) -> State:
    """Integers ``(N, *event)`` as one-hot floats ``(N, *event, K)``; real variables as they are."""

    def change(t: Tensor, variable: Variable) -> Tensor:
        return F.one_hot(t.long(), variable.levels).to(dtype) if variable.discrete else t

    if isinstance(x, Tensor):
        assert isinstance(variables, Variable)
        return change(x, variables)
    assert isinstance(variables, Mapping)
    return {name: change(t, variables[name]) for name, t in x.items()}
