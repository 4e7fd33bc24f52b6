"""Small texts and tokenizers for tests of partitioners."""

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

STOP = 0
# Token 0 ends a sentence and means nothing; 1 to 4 are about cats, 5 to 8 about law.
TOPICS = torch.tensor([[0.0, 0.0]] + [[1.0, 0.1]] * 4 + [[0.1, 1.0]] * 4)
CATS, LAW = [1, 2, 3, 4, 1, 2, 3, STOP], [5, 6, 7, 8, 5, 6, 7, STOP]


def word_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with one token for every word and sign of the text, as GPT-2 would split it."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words = dict.fromkeys(word for word, _ in split.pre_tokenize_str(text))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=next(iter(words))))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def ending_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """A ``word_tokenizer`` that appends an end of sequence, a token of its own, to whatever it reads."""
    tokenizer = word_tokenizer(text)
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    return tokenizer


def lengths(partitioner, ids) -> list[int]:
    opened = np.flatnonzero(partitioner.boundaries(np.asarray(ids)))
    return np.diff([*opened, len(ids)]).tolist()


def sentence_corpus(windows: int = 800, width: int = 256) -> list[np.ndarray]:
    """Windows cut from one stream of sentences with the skewed lengths of prose, mean about 30 tokens."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 9, windows * width)
    ids[np.cumsum(1 + rng.gamma(2.0, 14.0, ids.size // 30).astype(int)) % ids.size] = STOP
    return list(ids.reshape(windows, width))
