"""The frozen models that partitioners name: surprisal of a language model, and sentence embeddings.

A name says how to get one again, so that a saved partitioner can be connected: ``surprisal:MODEL``,
``hidden:LAYER:MODEL``, ``sentence:MODEL:SENTENCE_MODEL``. MODEL is as for ``model_store.resolve``, and its tokenizer
must be the one that writes the token ids; SENTENCE_MODEL is a folder or a Hub id for the package sentence-transformers.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proloc.errors import ProlocError
from proloc.hf.models import load_model, load_tokenizer

_LONGEST_CONTEXT = 1024
_SENTENCES_AT_ONCE = 32


def provide(name: str) -> Any:
    """The model behind a name, for ``Partitioner.connect``.

    Raises:
        ProlocError: a name of no known form, or of a model that cannot be loaded.
    """
    kind, _, rest = name.partition(":")
    first, _, second = rest.partition(":")
    if kind == "surprisal" and rest:
        return FrozenSurprisal(rest)
    if kind == "hidden" and second and first.isdigit():
        return HiddenStates(second, int(first))
    if kind == "sentence" and first and second:
        return SentenceTransformerVectors(first, second)
    raise ProlocError(
        f"'{name}' names no frozen model; give surprisal:MODEL, hidden:LAYER:MODEL or sentence:MODEL:SENTENCE_MODEL."
    )


class FrozenSurprisal:
    """``-log2 p(token t | tokens before t)`` of a model that no training touches, in float32.

    Texts longer than the model's context are read in windows that overlap by half, so that every token is predicted
    from at least half a context, and from tokens before it only. Each sequence is run alone: a batch would change the
    rounding. Reading T tokens costs a forward pass over T tokens, every time; in generation that is one at each step.

    Args:
        model: as for ``model_store.resolve``.
    """

    def __init__(self, model: str) -> None:
        self.name = f"surprisal:{model}"
        self._model = load_model(model).eval()
        limit = getattr(self._model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        self._context = min(limit or _LONGEST_CONTEXT, _LONGEST_CONTEXT)

    def __call__(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Bits ``[seq]``; 0 for the first token, which nothing predicts."""
        tokens, half = _checked(ids, self._model), self._context // 2
        bits = torch.zeros(tokens.numel(), dtype=torch.float64)
        for start in range(0, max(tokens.numel() - half, 1), half):
            window = tokens[start : start + 2 * half]
            with torch.no_grad():
                logits = self._model(input_ids=window[None], use_cache=False).logits[0, :-1]
            nats = -torch.log_softmax(logits.float(), dim=-1).gather(1, window[1:, None])[:, 0]
            new = half if start else 1
            bits[start + new : start + window.numel()] = nats[new - 1 :].double() / math.log(2)
        return bits.numpy()


class HiddenStates:
    """The mean of a sentence's hidden states at one layer, each sentence read alone (its first 1,024 tokens at most).

    Args:
        model: as for ``model_store.resolve``.
        layer: 0 = the input embeddings, up to the number of layers = the last.
    """

    def __init__(self, model: str, layer: int) -> None:
        self.name = f"hidden:{layer}:{model}"
        self._model = load_model(model).eval()
        config = self._model.config.get_text_config(decoder=True)
        if not 0 <= layer <= config.num_hidden_layers:
            raise ProlocError(f"{model} has hidden states 0 to {config.num_hidden_layers}, not {layer}.")
        self._layer = layer
        limit = getattr(config, "max_position_embeddings", None)
        self._context = min(limit or _LONGEST_CONTEXT, _LONGEST_CONTEXT)

    def __call__(self, ids: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.float64]:
        """Float64 ``[sentence, width]``."""
        tokens = _checked(ids, self._model)
        parts = [tokens[left : min(right, left + self._context)] for left, right in _spans(bounds)]
        order = sorted(range(len(parts)), key=lambda sentence: parts[sentence].numel())
        vectors: dict[int, Tensor] = {}
        for first in range(0, len(order), _SENTENCES_AT_ONCE):
            chosen = order[first : first + _SENTENCES_AT_ONCE]
            padded = torch.nn.utils.rnn.pad_sequence([parts[sentence] for sentence in chosen], batch_first=True)
            real = torch.arange(padded.shape[1])[None] < torch.tensor([[parts[s].numel()] for s in chosen])
            with torch.no_grad():
                states = self._model(
                    input_ids=padded, attention_mask=real.long(), use_cache=False, output_hidden_states=True
                ).hidden_states[self._layer]
            means = (states * real[..., None]).sum(1).double() / real.sum(1, keepdim=True)
            vectors |= dict(zip(chosen, means, strict=True))
        return torch.stack([vectors[sentence] for sentence in range(len(parts))]).numpy()


class SentenceTransformerVectors:
    """The vectors of a sentence-transformers model, for the sentences as text.

    Args:
        model: whose tokenizer wrote the ids.
        sentence_model: a folder or a Hub id.

    Raises:
        ProlocError: sentence-transformers is not installed, or has no such model.
    """

    def __init__(self, model: str, sentence_model: str) -> None:
        self.name = f"sentence:{model}:{sentence_model}"
        self._tokenizer = load_tokenizer(model)
        self._encoder = _sentence_transformer(sentence_model)

    def __call__(self, ids: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.float64]:
        """Float64 ``[sentence, width]``."""
        texts = [self._tokenizer.decode(ids[left:right].tolist()).strip() for left, right in _spans(bounds)]
        return np.asarray(self._encoder.encode(texts, show_progress_bar=False), dtype=np.float64)


def _spans(bounds: NDArray[np.int64]) -> list[tuple[int, int]]:
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))


def _checked(ids: NDArray[np.int64], model: Any) -> Tensor:
    vocab = model.get_input_embeddings().num_embeddings
    if ids.min() < 0 or ids.max() >= vocab:
        raise ProlocError(f"Token ids {int(ids.min())} to {int(ids.max())} are outside the model's {vocab} tokens.")
    return torch.from_numpy(np.ascontiguousarray(ids))


def _sentence_transformer(name: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ProlocError('sentence models need the package: pip install "proloc[embed]".') from error
    try:
        return SentenceTransformer(name, device="cpu")
    except Exception as error:  # it raises many kinds; all of them mean that the model cannot be had
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ProlocError(f"cannot load the sentence model {name}: {reason}") from error
