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

import copy
import math
import os
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from boltzmix.compose.errors import MissingExtra
from boltzmix.compose.term import Evaluated, Normalized, Term
from boltzmix.compose.variable import Variable, check_state, integers
from boltzmix.models.adapters.causal import configuration, evaluating, log_probs, vocabulary_size, wide, without
from boltzmix.models.adapters.tokens import prompt_ids, read_rows, shifted, special_id, text_ids


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
        self.config = configuration(model)
        self.vocabulary = vocabulary_size(model)
        self.variables = Variable((size,), integers(self.vocabulary))
        self.conditions = frozenset({"prompt", "prompt_ids"})
        known = (tokenizer, self.config, self.vocabulary)
        self.prompt: tuple[int, ...] = ()
        self.bos_id = special_id("bos", bos_id, *known)
        self.eos_id: int | None = None
        self.pad_id: int | None = None
        self.padding_side = padding_side or getattr(tokenizer, "padding_side", "right")
        if self.padding_side not in ("left", "right"):
            raise ValueError(f"padding_side is 'left' or 'right', got {padding_side!r}")
        if not self.fixed:
            self.eos_id = special_id("eos", eos_id, *known)
            if self.eos_id is None:
                raise ValueError(
                    "texts of max_length= end with a token: pass eos_id=, or length= for rows of one length"
                )
            self.pad_id = special_id("pad", pad_id, *known)
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
        prompt = text_ids(value, self.tokenizer) if name == "prompt" else prompt_ids(value, self.vocabulary)
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
        rows, kept = self._known(shifted(ids, lead, 0)), shifted(kept, lead, False)
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
        rows, counted, possible = self._read(x)
        prefixes = [self._row(view._prefix(), x) for view in views]
        apart = self.pad_id if self.pad_id != self.eos_id else None
        energies = []
        for found in self._token_logs(prefixes, rows, apart):
            energy = -torch.where(counted, found, 0.0).sum(1)
            energies.append(torch.where(possible, energy, torch.inf))
        return energies

    def _read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return read_rows(self._known(x), self.eos_id, self.pad_id, self.padding_side == "left")

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
        with evaluating(self.model):
            logits = self.model(input_ids=tall, attention_mask=mask, use_cache=False).logits
        found = []
        for prefix, part in zip(prefixes, logits.chunk(len(prefixes)), strict=True):
            start = prefix.shape[1] - 1
            found.append(log_probs(part[:, start : start + size], rows, apart))
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
        with torch.no_grad(), evaluating(self.model):
            for t in range(size):
                before = {} if cache is None else {"past_key_values": cache}
                out = self.model(input_ids=fed, attention_mask=torch.ones_like(ids), use_cache=True, **before)
                logits = without(wide(out.logits[:, -1]), self.pad_id if self.pad_id != self.eos_id else None)
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
        return shifted(rows, end - (size - 1), self.pad_id)

    # ---------------------------------------------------------------------- text

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts as rows ``(N, L)``: tokens, EOS where there is room, pads on the tokenizer's side.

        Raises:
            ValueError: a text that is too long, or not of exactly L tokens for a term of ``length=``.
        """
        size, rows = self.event_shape[0], []
        for text in [texts] if isinstance(texts, str) else texts:
            ids = list(text_ids(text, self.tokenizer, empty=True))
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
        rows, counted, _ = self._read(x)
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
