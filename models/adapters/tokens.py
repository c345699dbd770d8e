"""Token ids of texts: special tokens, prompts, and rows that end early and are filled with pads."""

from typing import Any

import torch
from torch import Tensor


def special_id(what: str, given: Any, tokenizer: Any, config: Any, vocabulary: int) -> int | None:
    """A special token: the id given, or for "auto" that of the tokenizer or else of the configuration; or None."""
    value = given
    if isinstance(given, str) and given == "auto":
        name = f"{what}_token_id"
        value = getattr(tokenizer, name, None)
        value = getattr(config, name, None) if value is None else value
        if isinstance(value, (list, tuple)):
            raise ValueError(f"the model has several {what} tokens, {list(value)}: pass {what}_id= to name the one")
        if value is None or not 0 <= value < vocabulary:
            return None
    if value is None and what == "bos":
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what}_id is a token id, got {value!r}")
    if not 0 <= value < vocabulary:
        raise ValueError(f"{what}_id is in [0, {vocabulary}), got {value}")
    return value


def text_ids(text: object, tokenizer: Any, empty: bool = False) -> tuple[int, ...]:
    """Ids of a string, without special tokens; none at all are refused unless ``empty``."""
    if not isinstance(text, str):
        raise TypeError(f"a prompt or text is a string, got {type(text).__name__}; ids go to prompt_ids=")
    if tokenizer is None:
        raise TypeError("strings need the tokenizer: term(model, tokenizer=…); or pass prompt_ids=")
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids and not empty:
        raise ValueError(f"the prompt {text!r} has no tokens; the term without a prompt is the unconditional one")
    return ids


def prompt_ids(value: Any, vocabulary: int) -> tuple[int, ...]:
    """Ids of a prompt, one or more ints of the vocabulary."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.dtype == torch.bool or value.ndim != 1:
            raise TypeError(
                f"prompt_ids are ints (P,), got {value.dtype} of shape {tuple(value.shape)}; make one term per "
                "prompt: they share a forward"
            )
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or any(isinstance(v, bool) or not isinstance(v, int) for v in value):
        raise TypeError(f"prompt_ids are a row of ints, got {value!r:.60}")
    if not value or not (min(value) >= 0 and max(value) < vocabulary):
        raise ValueError(f"prompt_ids are one or more token ids in [0, {vocabulary}), got {value!r:.60}")
    return tuple(value)


def read_rows(x: Tensor, eos_id: int | None, pad_id: int | None, left: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rows ``(N, L)`` with their text at the left, which of their tokens count, and which rows have a density.

    Args:
        x: ids.
        eos_id, pad_id: how a text ends and what fills its row; None for rows of exactly L tokens.
        left: whether pads stand on the left.
    """
    place = torch.arange(x.shape[1], device=x.device)
    if eos_id is None:
        everything = torch.ones_like(x, dtype=torch.bool)
        return x, everything, everything[:, 0]
    size = x.shape[1]
    lead = (x == pad_id).cumprod(1).sum(1) if left else x.new_zeros(len(x))
    if pad_id == eos_id:
        lead = lead.clamp(max=size - 1)  # the last of a row of pads ends the empty text
    rows = shifted(x, lead.clamp(max=size - 1), pad_id)
    is_end = rows == eos_id
    end = torch.where(is_end.any(1), is_end.long().argmax(1), size)  # of the first EOS
    counted = place <= end[:, None]
    rest = torch.where(counted, rows != pad_id, rows == pad_id)
    if pad_id == eos_id:
        rest = counted | (rows == pad_id)
    room = size - lead
    fits = (end == room - 1) | ((end == size) & (lead == 0)) if left else torch.ones_like(end, dtype=torch.bool)
    return rows, counted, rest.all(1) & fits


def shifted(rows: Tensor, by: Tensor, fill: Any) -> Tensor:
    """Each row moved to the left by its own number of places (to the right where negative), filled up."""
    place = torch.arange(rows.shape[1], device=rows.device) + by[:, None]
    outside = (place < 0) | (place >= rows.shape[1])
    return rows.gather(1, place.clamp(0, rows.shape[1] - 1)).masked_fill(outside, fill)
