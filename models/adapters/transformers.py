r"""Causal language models of the transformers library as normalised terms over token ids.

.. math:: E(x) = -\sum_{t=1}^{m} \log p(x_t \mid \text{BOS}, \text{prompt}, x_{<t})

A state is long ``(N, L)``. Two readings of a row make the sum of :math:`e^{-E}` over all rows exactly one:

``length=L``
    L tokens, every id of the vocabulary allowed everywhere; an end-of-text token is a token like the others.
``max_length=L``
    a text that may end early. It ends with the EOS token, and pads fill the row on the tokenizer's side:
    ``a b EOS pad`` or ``pad a b EOS``. Pads contribute 0. A text of L tokens without EOS is a row, too: it was cut off
    there. Every other row (an unfinished text that is padded, a pad or a second EOS inside) has zero density. A pad
    token that is not also the EOS token is no token of the text: its share of the softmax goes to the others.
    (Training masks pads out of the loss, so this share is what the model was never taught.)

The BOS token is what the first token is conditioned on; it stands before the row, not in it, and is not counted. A
prompt follows it. The density is one of ids: tokenising a prompt and its continuation apart need not give the tokens of
the whole text.

A power ``p ** (1 / T)`` is the tempered density of whole rows. Dividing each token's logits by T, which other libraries
call temperature, renormalises at every step and is another distribution.
"""

import contextlib
import copy
import math
import os
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import MissingExtra
from boltzmix.compose.term import Evaluated, Normalized, Term
from boltzmix.compose.variable import Variable, check_state, integers


class CausalLM(Normalized):
    r"""A causal language model as a static, normalised term over rows of token ids (see the module's page).

    Energies are those of the model in evaluation mode, without dropout, whatever mode it is in; its mode, gradients and
    device stay as they are. Log-probabilities are float32 for models in half precision. Prompts of one model are
    evaluated together: k prompts of N rows are one forward of k·N rows.

    Args:
        model: a transformers causal language model, e.g. ``GPT2LMHeadModel``.
        tokenizer: its tokenizer, for prompts and texts as strings, special tokens and the padding side.
        length: L, for rows of exactly L tokens.
        max_length: L, for texts that may end early. Give one of the two.
        bos_id, eos_id, pad_id: special tokens; ``"auto"`` asks the tokenizer, then the model's configuration; without
            a pad token the EOS token pads. ``bos_id=None``: no BOS, so that a prompt is needed.
        padding_side: ``"left"`` or ``"right"``; None asks the tokenizer, and is right without one.

    Raises:
        TypeError: a model that is not a causal language model; strings without a tokenizer.
        ValueError: lengths that the model cannot hold, tokens outside its vocabulary, missing special tokens.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(vocab_size=5, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
        >>> p = CausalLM(GPT2LMHeadModel(config), max_length=4)
        >>> p.log_prob(p.sample(3)).shape, p.given(prompt_ids=[1, 2]).variables.support
        (torch.Size([3]), 'integers(5)')
    """

    path = "static"
    samplable = True
    has_score = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        length: int | None = None,
        max_length: int | None = None,
        bos_id: int | Literal["auto"] | None = "auto",
        eos_id: int | Literal["auto"] = "auto",
        pad_id: int | Literal["auto"] = "auto",
        padding_side: Literal["left", "right"] | None = None,
    ) -> None:
        """Check the description, and that the model is causal, by one forward of two short rows."""
        super().__init__()
        if (length is None) == (max_length is None):
            raise ValueError(
                "say how long a row is: length=L for exactly L tokens, or max_length=L for texts that may end early"
            )
        size: Any = max_length if length is None else length
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"length and max_length are positive ints, got {size!r}")
        self.model, self.tokenizer = model, tokenizer
        self.fixed = length is not None
        self.config = _config(model)
        self.vocabulary = _try(model)
        self.variables = Variable((size,), integers(self.vocabulary))
        self.conditions = frozenset({"prompt", "prompt_ids"})
        self.prompt: tuple[int, ...] = ()
        self.bos_id = self._special("bos", bos_id)
        self.eos_id: int | None = None
        self.pad_id: int | None = None
        self.padding_side = padding_side or getattr(tokenizer, "padding_side", "right")
        if self.padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is 'left' or 'right', got {padding_side!r}")
        if not self.fixed:
            self.eos_id = self._special("eos", eos_id)
            if self.eos_id is None:
                raise ValueError(
                    "texts of max_length= end with a token: pass eos_id=, or length= for rows of one length"
                )
            self.pad_id = self._special("pad", pad_id)
            self.pad_id = self.eos_id if self.pad_id is None else self.pad_id
        elif eos_id != "auto" or pad_id != "auto":
            raise ValueError("eos_id= and pad_id= go with max_length=; rows of length= have no end and no pads")
        self._check_room()

    # --------------------------------------------------------------------- hooks

    def _energy(self, x: Any, sigma: Any) -> Tensor:
        return self._energies([self], x)[0]

    def _energy_and_score(self, x: Any, sigma: Any) -> tuple[Tensor, Tensor]:
        return self._energies([self], x)[0], torch.zeros_like(x)

    def _score(self, x: Any, sigma: Any) -> Tensor:
        return torch.zeros_like(x)  # of integers there is none; a product with other variables has theirs

    def _given(self, **condition: object) -> "CausalLM":
        if len(condition) > 1:
            raise TypeError("give prompt= (a string) or prompt_ids= (token ids), not both")
        name, value = next(iter(condition.items()))
        prompt = self._tokens(value) if name == "prompt" else self._ids(value)
        twin = copy.copy(self)
        twin._modules = dict(self._modules)  # nn.Module keeps it by reference; the model itself is shared
        twin.prompt, twin.conditions = prompt, frozenset()
        twin._check_room()
        return twin

    def key(self) -> Hashable:
        """The model, how rows are read, and the prompt."""
        return (self._group(), self.prompt)

    def _group(self) -> Hashable:
        ends = (self.bos_id, self.eos_id, self.pad_id, self.padding_side)
        return ("causal-lm", id(self.model), self.event_shape, self.fixed, ends)

    def _evaluate_together(
        self, terms: Sequence[Term], x: Any, sigma: Any, energy: bool, score: bool
    ) -> list[Evaluated]:
        views: Any = terms
        energies = self._energies(views, x) if energy else [None] * len(terms)
        return [(e, torch.zeros_like(x) if score else None) for e in energies]

    def _rows(self) -> int:
        return 1

    def name(self) -> str:
        """The model's class, and the length of the prompt."""
        prompt = f", prompt of {len(self.prompt)}" if self.prompt else ""
        return f"CausalLM({type(self.model).__name__}{prompt})"

    # ---------------------------------------------------------------- evaluation

    def log_likelihood(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Σ log p(token | what stands before it) over the tokens that the mask keeps, ``(N,)``: a prefix's probability.

        This is what transformers' loss averages. Unlike :meth:`log_prob` it is no density of rows: an unfinished text
        counts as far as it goes, and no share of the softmax is taken from pads.

        Args:
            ids: long ``(N, T)``, padded on either side.
            attention_mask: ``(N, T)``, 1 or True where a token stands, contiguous; None for no pads.

        Where the term has neither BOS nor prompt the first token of a row is what the rest is conditioned on.
        """
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
            raise TypeError("ids are a long tensor (N, T)")
        kept = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if kept.shape != ids.shape:
            raise ValueError(f"the mask has the shape of ids {tuple(ids.shape)}, got {tuple(kept.shape)}")
        if bool(((kept[:, 1:] != kept[:, :-1]).sum(1) > 2 - (kept[:, 0] | kept[:, -1]).long()).any()):
            raise ValueError("the tokens of a row stand together: pads are on its left or right, not inside")
        lead = (kept.cumsum(1) == 0).sum(1)
        rows, kept = self._known(_shifted(ids, lead, 0)), _shifted(kept, lead, False)
        prefix = self._prefix()
        if not prefix:
            first, rows, kept = rows[:, :1], rows[:, 1:], kept[:, 1:]
            found = self._token_logs([first], rows, None)[0]
        else:
            found = self._token_logs([self._row(prefix, ids)], rows, None)[0]
        return torch.where(kept, found, 0.0).sum(1)

    def _energies(self, views: "Sequence[CausalLM]", x: Tensor) -> list[Tensor]:
        """Energies ``(N,)`` of several prompts at the same rows: one forward."""
        for view in views:
            if not view._prefix():
                raise TypeError(
                    f"{self.name()} has no BOS token to condition the first token on: pass bos_id=, or condition on a "
                    "prompt, p.given(prompt_ids=[…])"
                )
        rows, counted, possible = self._read(self._known(x))
        prefixes = [self._row(view._prefix(), x) for view in views]
        apart = self.pad_id if self.pad_id != self.eos_id else None
        energies = []
        for found in self._token_logs(prefixes, rows, apart):
            energy = -torch.where(counted, found, 0.0).sum(1)
            energies.append(torch.where(possible, energy, torch.inf))
        return energies

    def _read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows with their text at the left, which of their tokens count, and which rows have a density."""
        place = torch.arange(x.shape[1], device=x.device)
        if self.fixed:
            everything = torch.ones_like(x, dtype=torch.bool)
            return x, everything, everything[:, 0]
        size, left = x.shape[1], self.padding_side == "left"
        lead = (x == self.pad_id).cumprod(1).sum(1) if left else x.new_zeros(len(x))
        if self.pad_id == self.eos_id:
            lead = lead.clamp(max=size - 1)  # the last of a row of pads ends the empty text
        rows = _shifted(x, lead.clamp(max=size - 1), self.pad_id)
        is_end = rows == self.eos_id
        end = torch.where(is_end.any(1), is_end.long().argmax(1), size)  # of the first EOS
        counted = place <= end[:, None]
        rest = torch.where(counted, rows != self.pad_id, rows == self.pad_id)
        if self.pad_id == self.eos_id:
            rest = counted | (rows == self.pad_id)
        room = size - lead
        fits = (end == room - 1) | ((end == size) & (lead == 0)) if left else torch.ones_like(end, dtype=torch.bool)
        return rows, counted, rest.all(1) & fits

    def _token_logs(self, prefixes: Sequence[Tensor], rows: Tensor, apart: int | None) -> list[Tensor]:
        """log p of every token of ``(N, T)`` rows after each prefix ``(N, P)``: one forward of k·N rows.

        Prefixes of different lengths are filled up behind the rows, where a causal model does not look.
        """
        n, size = rows.shape
        longest = max(prefix.shape[1] for prefix in prefixes) + size - 1
        inputs = [torch.cat([prefix, rows[:, :-1]], 1) for prefix in prefixes]
        if size == 0:
            return [rows.new_zeros(n, 0, dtype=torch.float32) for _ in prefixes]
        tall = torch.cat([nn.functional.pad(part, (0, longest - part.shape[1])) for part in inputs])
        lengths = torch.tensor([part.shape[1] for part in inputs], device=rows.device).repeat_interleave(n)
        mask = (torch.arange(longest, device=rows.device) < lengths[:, None]).long()
        with _evaluating(self.model):
            logits = self.model(input_ids=tall, attention_mask=mask, use_cache=False).logits
        found = []
        for prefix, part in zip(prefixes, logits.chunk(len(prefixes)), strict=True):
            start = prefix.shape[1] - 1
            found.append(_logs(part[:, start : start + size], rows, apart))
        return found

    # ------------------------------------------------------------------ sampling

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        prefix = self._prefix()
        if not prefix:
            raise TypeError(f"{self.name()} has no BOS token to start from: pass bos_id=, or condition on a prompt")
        device = self.model.device
        size = self.event_shape[0]
        ids = torch.tensor(prefix, device=device).expand(n, -1)
        ended = torch.zeros(n, dtype=torch.bool, device=device)
        rows: Tensor = torch.full((n, size), 0 if self.pad_id is None else self.pad_id, device=device)
        fed, cache = ids, None
        with torch.no_grad(), _evaluating(self.model):
            for t in range(size):
                before = {} if cache is None else {"past_key_values": cache}
                out = self.model(input_ids=fed, attention_mask=torch.ones_like(ids), use_cache=True, **before)
                logits = _apart(_wide(out.logits[:, -1]), self.pad_id if self.pad_id != self.eos_id else None)
                where = logits.device if generator is None else generator.device
                token = torch.multinomial(logits.softmax(1).to(where), 1, generator=generator)[:, 0].to(device)
                if self.pad_id is not None:  # rows that may end
                    token = torch.where(ended, self.pad_id, token)
                    ended = ended | (token == self.eos_id)
                rows[:, t] = token
                if bool(ended.all()):
                    break
                cache = getattr(out, "past_key_values", None)
                ids = torch.cat([ids, token[:, None]], 1)
                fed = ids if cache is None else token[:, None]
        if self.fixed or self.padding_side == "right":
            return rows
        is_end = rows == self.eos_id
        end = torch.where(is_end.any(1), is_end.long().argmax(1), size - 1)
        return _shifted(rows, end - (size - 1), self.pad_id)

    # ---------------------------------------------------------------------- text

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts as rows ``(N, L)``: tokens, EOS where there is room, pads on the tokenizer's side.

        Raises:
            ValueError: a text that is too long, or not of exactly L tokens for a term of ``length=``.
        """
        size, rows = self.event_shape[0], []
        for text in [texts] if isinstance(texts, str) else texts:
            ids = list(self._tokens(text, empty=True))
            if len(ids) > size or (self.fixed and len(ids) != size):
                wanted = f"{'' if self.fixed else 'at most '}{size} tokens"
                raise ValueError(f"a text of {len(ids)} tokens, and this term takes {wanted}: {text!r:.60}")
            if not self.fixed and len(ids) < size:
                ids.append(self.eos_id)  # pyright: ignore[reportArgumentType]
                pads: Any = [self.pad_id] * (size - len(ids))
                ids = pads + ids if self.padding_side == "left" else ids + pads
            rows.append(ids)
        return torch.tensor(rows, device=self.model.device)

    def decode(self, x: Tensor) -> list[str]:
        """Rows as texts, without EOS and pads."""
        if self.tokenizer is None:
            raise TypeError("decode() needs the tokenizer: term(model, tokenizer=…)")
        rows, counted, _ = self._read(self._known(x))
        kept = counted if self.fixed else counted & (rows != self.eos_id)
        return [self.tokenizer.decode(row[k].tolist()) for row, k in zip(rows, kept, strict=True)]

    # ------------------------------------------------------------------ training

    def loss(self, batch: Any, generator: torch.Generator) -> Tensor:
        """Mean −log p of rows ``(N, L)``, for fine-tuning with :func:`boltzmix.models.fit`; without dropout.

        Raises:
            ValueError: rows of zero density; their loss would be infinite.
        """
        check_state(batch, self.variables, f"the batch of {self.name()}")
        energy = self._energy(batch, None)
        if bool(torch.isinf(energy.detach()).any()):
            raise ValueError("a row of the batch is no text of this term (see its page on EOS and pads): use encode()")
        return energy.mean()

    # ------------------------------------------------------------------- helpers

    def _prefix(self) -> tuple[int, ...]:
        return (() if self.bos_id is None else (self.bos_id,)) + self.prompt

    def _row(self, prefix: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.tensor(prefix, dtype=torch.long, device=like.device).expand(len(like), -1)

    def _known(self, x: Tensor) -> Tensor:
        """Rows as long ids, refused where they are not of this vocabulary or device."""
        if x.device != self.model.device:
            raise TypeError(f"{self.name()} is on {self.model.device} and got ids on {x.device}; move one of them")
        if x.numel() and not (int(x.min()) >= 0 and int(x.max()) < self.vocabulary):
            raise ValueError(
                f"token ids are in [0, {self.vocabulary}), got {int(x.min())} … {int(x.max())}: another tokenizer?"
            )
        return x.long()

    def _special(self, what: str, given: Any) -> int | None:
        value = given
        if isinstance(given, str) and given == "auto":
            name = f"{what}_token_id"
            value = getattr(self.tokenizer, name, None)
            value = getattr(self.config, name, None) if value is None else value
            if isinstance(value, (list, tuple)):
                raise ValueError(f"the model has several {what} tokens, {list(value)}: pass {what}_id= to name the one")
            if value is None or not 0 <= value < self.vocabulary:
                return None
        if value is None and what == "bos":
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{what}_id is a token id, got {value!r}")
        if not 0 <= value < self.vocabulary:
            raise ValueError(f"{what}_id is in [0, {self.vocabulary}), got {value}")
        return value

    def _tokens(self, text: object, empty: bool = False) -> tuple[int, ...]:
        if not isinstance(text, str):
            raise TypeError(f"a prompt or text is a string, got {type(text).__name__}; ids go to prompt_ids=")
        if self.tokenizer is None:
            raise TypeError("strings need the tokenizer: term(model, tokenizer=…); or pass prompt_ids=")
        ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids and not empty:
            raise ValueError(f"the prompt {text!r} has no tokens; the term without a prompt is the unconditional one")
        return ids

    def _ids(self, value: Any) -> tuple[int, ...]:
        if isinstance(value, Tensor):
            if value.is_floating_point() or value.dtype == torch.bool or value.ndim != 1:
                raise TypeError(
                    f"prompt_ids are ints (P,), got {value.dtype} of shape {tuple(value.shape)}; make one term per "
                    "prompt: they share a forward"
                )
            value = value.tolist()
        if not isinstance(value, (list, tuple)) or any(isinstance(v, bool) or not isinstance(v, int) for v in value):
            raise TypeError(f"prompt_ids are a row of ints, got {value!r:.60}")
        if not value or not (min(value) >= 0 and max(value) < self.vocabulary):
            raise ValueError(f"prompt_ids are one or more token ids in [0, {self.vocabulary}), got {value!r:.60}")
        return tuple(value)

    def _check_room(self) -> None:
        most = getattr(self.config, "max_position_embeddings", None) or math.inf
        needed = len(self._prefix()) + self.event_shape[0] - 1
        if needed > most:
            raise ValueError(
                f"{self.name()} reads at most {most} tokens and needs {needed}: {len(self._prefix())} of BOS and "
                f"prompt, then rows of {self.event_shape[0]}"
            )


def from_transformers(model: Any, *, event_shape: Any = None, **hints: Any) -> CausalLM:
    """A transformers model as a term; see :class:`CausalLM`.

    Raises:
        TypeError: hints that a language model does not take.
    """
    if event_shape is not None:
        raise TypeError("a language model takes length=L or max_length=L, not event_shape=")
    known = {"tokenizer", "length", "max_length", "bos_id", "eos_id", "pad_id", "padding_side"}
    if set(hints) - known:
        raise TypeError(f"a language model got unknown hints {sorted(set(hints) - known)}; it takes {sorted(known)}")
    return CausalLM(model, **hints)


def from_folder(folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None, **hints: Any) -> CausalLM:
    """The language model saved in a local folder, with its tokenizer if one is there; never the network.

    Only safetensors weights are read, and no code from the folder is run.

    Args:
        folder: what ``save_pretrained`` wrote.
        dtype: of the weights, e.g. ``torch.bfloat16``; None for that of the file.
        hints: arguments of :class:`CausalLM`.

    Raises:
        MissingExtra: transformers is not installed.
        FileNotFoundError: no such folder.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtra('language models need transformers: pip install "boltzmix[transformers]"') from error
    path = Path(folder)
    if not (path / "config.json").exists():
        raise FileNotFoundError(f"{path} is no folder of a transformers model: there is no config.json")
    options: Any = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype or "auto", **options)
    if "tokenizer" not in hints and any((path / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        hints["tokenizer"] = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    return CausalLM(model, **hints)


def _config(model: Any) -> Any:
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


def _try(model: Any) -> int:
    """The size of the vocabulary, by a forward of two rows that differ in their last token.

    Raises:
        TypeError: a model without logits, or one whose first prediction saw the last token.
    """
    rows = torch.tensor([[0, 0], [0, 1]], device=model.device)
    with torch.no_grad(), _evaluating(model):
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
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a block; a model in training mode is put back, module by module."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _apart(logits: Tensor, pad: int | None) -> Tensor:
    """Logits with a token taken out."""
    if pad is None:
        return logits
    return logits.index_fill(-1, torch.tensor([pad], device=logits.device), -torch.inf)


def _logs(logits: Tensor, rows: Tensor, apart: int | None) -> Tensor:
    """log p of the tokens ``(N, T)`` under logits ``(N, T, V)``."""
    wide = _wide(logits)
    return wide.gather(2, rows[..., None])[..., 0] - _apart(wide, apart).logsumexp(2)


def _shifted(rows: Tensor, by: Tensor, fill: Any) -> Tensor:
    """Each row moved to the left by its own number of places (to the right where negative), filled up."""
    place = torch.arange(rows.shape[1], device=rows.device) + by[:, None]
    outside = (place < 0) | (place >= rows.shape[1])
    return rows.gather(1, place.clamp(0, rows.shape[1] - 1)).masked_fill(outside, fill)
