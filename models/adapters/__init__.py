"""What users already hold, as terms: ``term(obj)`` looks at the object's class and loads the adapter it needs."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from boltzmix.compose.term import Term


def term(
    obj: Any,
    *,
    kind: str | None = None,
    event_shape: Sequence[int] | None = None,
    schedule: object = None,
    **hints: Any,
) -> Term:
    """The density that an object stands for.

    ========================================  ======================================================================
    object                                    becomes
    ========================================  ======================================================================
    a term                                    itself
    ``torch.distributions``                   a normalised static term
    a function, with ``kind=``                energy, log-density or score as given; the sign is never guessed
    a zuko flow or distribution               :class:`~boltzmix.models.adapters.zuko.FlowTerm`
    a diffusers network, with ``schedule=``   :func:`~boltzmix.models.adapters.diffusers.from_diffusers`
    a diffusers pipeline                      :class:`~boltzmix.models.adapters.pipelines.PipelineTerm`
    a network, with ``schedule=``             :class:`~boltzmix.models.adapters.network.NetworkTerm`
    a transformers causal language model      :class:`~boltzmix.models.adapters.transformers.CausalLM`
    ========================================  ======================================================================

    Args:
        obj: what to turn into a term.
        kind: ``"log_prob"``, ``"energy"`` or ``"score"``, for functions.
        event_shape: shape of one draw, without the batch dimension.
        schedule: a diffusers scheduler, or a :class:`~boltzmix.models.schedules.Schedule`.
        **hints: what the adapter takes beside these. For networks called as ``net(x_t, t)``: ``prediction=``
            (read from a diffusers scheduler), ``num_classes=, null_label=, label_keyword=`` or
            ``conditions=``, ``data_loc=, data_scale=, cast=, integer_time=, learned_variance=``.

    Raises:
        TypeError: an object that no adapter knows, or hints that its adapter does not take.
        MissingExtra: an optional dependency is not installed.

    Example:
        >>> import torch
        >>> from boltzmix.models.schedules import VE
        >>> p = term(lambda x, t: x / (1 + t[:, None]), schedule=VE(), prediction="sample", event_shape=(3,))
        >>> p.path, p.has_energy
        ('noised', False)
    """
    if isinstance(obj, Term):
        if kind is not None or event_shape is not None or schedule is not None or hints:
            raise TypeError(f"{obj.name()} is a term already and takes no hints")
        return obj
    library = _library(getattr(obj, "_orig_mod", obj))
    if library in ("zuko", "diffusers", "transformers") and kind is not None:
        raise TypeError(f"kind= is for functions; {type(obj).__name__} of {library} says what it is")
    if library == "zuko":
        from boltzmix.models.adapters.zuko import from_zuko

        if schedule is not None:
            raise TypeError("schedule= is for diffusion networks; a flow has no noise levels")
        return from_zuko(obj, event_shape=event_shape, **hints)
    if library == "diffusers":
        from boltzmix.models.adapters.diffusers import from_diffusers

        if hasattr(obj, "components"):
            from boltzmix.models.adapters.pipelines import from_pipeline

            return from_pipeline(obj, schedule, event_shape=event_shape, **hints)
        return from_diffusers(obj, schedule, event_shape=event_shape, **hints)
    if library == "transformers":
        from boltzmix.models.adapters.transformers import from_transformers

        if schedule is not None:
            raise TypeError("schedule= is for diffusion networks; a language model has no noise levels")
        return from_transformers(obj, event_shape=event_shape, **hints)
    if schedule is not None:
        if kind is not None:
            raise TypeError("kind= is for functions of (x, sigma); a network with schedule= takes prediction= instead")
        return from_network(obj, schedule, event_shape=event_shape, **hints)
    if isinstance(obj, nn.Module) and kind is None and "prediction" in hints:
        raise ValueError(
            "a diffusion network needs schedule=, the scheduler or Schedule that it was trained with, e.g. "
            f"VP(alphas_cumprod); got {sorted(hints)}"
        )
    from boltzmix.compose import callables

    return callables.term(obj, kind=kind, event_shape=event_shape, **hints)


def from_network(
    net: Any,
    schedule: object,
    *,
    event_shape: Sequence[int] | None = None,
    prediction: str | None = None,
    num_classes: int | None = None,
    null_label: int | None = None,
    label_keyword: str = "label",
    conditions: Mapping[str, Any] | None = None,
    **hints: Any,
) -> Term:
    """A network called as ``net(x_t, t, **conditions)``; see :class:`~boltzmix.models.adapters.network.NetworkTerm`."""
    from boltzmix.models.adapters.diffusers import read_schedule
    from boltzmix.models.adapters.network import Condition, NetworkTerm

    if event_shape is None:
        raise ValueError("a network does not say what it is a density of: pass event_shape=, e.g. event_shape=(2,)")
    found, predicted = read_schedule(schedule, prediction)
    named = dict(conditions or {})
    if num_classes is not None:
        named["label"] = Condition(label_keyword, num_classes, null=null_label)
    elif null_label is not None:
        raise ValueError("null_label= goes with num_classes=")
    return NetworkTerm(net, found, predicted, event_shape, conditions=named, **hints)


def _library(obj: object) -> str:
    """The adapter's library for an object, from the modules of its class and its bases."""
    tops = [cls.__module__.partition(".")[0] for cls in type(obj).__mro__]
    return next((top for top in tops if top in ("zuko", "diffusers", "transformers")), "")
