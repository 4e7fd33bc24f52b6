"""Fixtures shared by all tests."""

import os
import pydoc_data.topics
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # no test needs the Hub, and without a network every attempt costs half a minute

torch.set_num_threads(1)

STUDY = """
name = "small"
model = "{model}"
seeds = [0]
conditions = ["distributed", "quintic"]
[text]
file = "text.txt"
max_held_out_windows = 3
[blocks]
kind = "sentence"
[training]
steps = 4
context = 48
batch_size = 2
learning_rate = 1e-3
"""


@pytest.fixture(scope="session")
def words() -> str:
    """Some real text."""
    return "\n\n".join(list(pydoc_data.topics.topics.values())[:12])


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, words: str) -> Path:
    """A tiny random GPT-2 with a tokenizer made for ``words``, saved as a user would have one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([words], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 64, "vocab_size": 400}
    GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    return folder


@pytest.fixture
def study(tmp_path: Path, model_folder: Path, words: str) -> Path:
    """A study's TOML file beside its text."""
    (tmp_path / "text.txt").write_text(words)
    file = tmp_path / "small.toml"
    file.write_text(STUDY.format(model=model_folder))
    return file
