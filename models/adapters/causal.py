"""What a causal language model of the transformers library is and answers: its vocabulary, its log-probabilities."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def configuration(model: Any) -> Any:
    """The configuration of a causal language model.

    Raises:
        TypeError: something else.
    """
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or config is None or not hasattr(model, "generate"):
        raise TypeError(
            f"a causal language model has a head that predicts the next token, such as GPT2LMHeadModel or what "
            f"AutoModelForCausalLM loads; got {type(model).__name__}"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise TypeError(f"{type(model).__name__} is an encoder-decoder; the term of a text alone needs a causal model")
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def vocabulary_size(model: Any) -> int:
    """The size of the vocabulary, by a forward of two rows that differ in their last token.

    Raises:
        TypeError: a model without logits, or one whose first prediction saw the last token.
    """
    rows = torch.tensor([[0, 0], [0, 1]], device=model.device)
    with torch.no_grad(), evaluating(model):
        logits = getattr(model(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False), "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:2] != rows.shape:
        raise TypeError(f"{type(model).__name__} returns no logits (N, T, V); a causal language model is needed")
    first = logits[:, 0].float()
    if float((first[0] - first[1]).abs().max()) > 1e-2 * (1e-3 + float(first.abs().max())):
        raise TypeError(
            f"{type(model).__name__} is not causal: its first prediction depends on the token after it, so the product "
            "of its predictions is no density"
        )
    return logits.shape[2]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a block; a model in training mode is put back, module by module."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def wide(logits: Tensor) -> Tensor:
    """Half precision as float32."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def without(logits: Tensor, pad: int | None) -> Tensor:
    """Logits with a token taken out."""
    if pad is None:
        return logits
    return logits.index_fill(-1, torch.tensor([pad], device=logits.device), -torch.inf)


def log_probs(logits: Tensor, rows: Tensor, apart: int | None) -> Tensor:
    """log p of the tokens ``(N, T)`` under logits ``(N, T, V)``."""
    known = wide(logits)
    return known.gather(2, rows[..., None])[..., 0] - without(known, apart).logsumexp(2)
