"""Pretrain the built-in model: a small GPT-2 on public-domain books (ours).

    python recipes/pretrain.py BOOKS OUT [--steps 2400] [--threads 2]

BOOKS is a folder of plain text files. Files whose name contains a word given to ``--hold-out`` are never read for
training; of every other file the last 5% of the tokens are kept for evaluation. OUT receives the tokenizer, the token
arrays, ``checkpoint.pt`` (the run resumes from it) and finally ``model/``: bf16 safetensors, tokenizer and config.

Matrices inside the layers are trained by Muon, everything else by AdamW; the first 70% of the steps read windows of
256 tokens, the rest windows of 512, so that all positions are learned at the price of the short ones.
"""

import argparse
import json
import math
import os
import pydoc_data.topics
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

VOCAB, WIDTH, LAYERS, HEADS, CONTEXT = 4096, 192, 8, 4, 512
TOKENS_PER_STEP = 4096
EVAL_SHARE = 0.05


def train_tokenizer(books: list[Path]) -> Tokenizer:
    """Byte-level BPE on the books and on Python's own documentation, the text of the demo."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [book.read_text() for book in books] + ["\n".join(pydoc_data.topics.topics.values())]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def prepare(books_dir: Path, out: Path, hold_out: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens for training and evaluation, cached in OUT."""
    train_file, eval_file = out / "train.npy", out / "eval.npy"
    if not eval_file.exists():
        books = [book for book in sorted(books_dir.glob("*.txt")) if hold_out not in book.name]
        tokenizer = train_tokenizer(books)
        tokenizer.save(str(out / "tokenizer.json"))
        train, held = [], []
        for book in books:
            ids = tokenizer.encode(book.read_text()).ids
            cut = int(len(ids) * (1 - EVAL_SHARE))
            train += ids[:cut]
            held += ids[cut:]
        np.save(train_file, np.array(train, dtype=np.uint16))
        np.save(eval_file, np.array(held, dtype=np.uint16))
    return np.load(train_file), np.load(eval_file)


def build_model() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_positions=CONTEXT,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def build_optimizers(model: GPT2LMHeadModel) -> list[torch.optim.Optimizer]:
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and ".h." in name else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.05, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate_factor(step: int, steps: int) -> float:
    """100 steps of warm-up, a plateau, and a linear decay to 2% over the second half."""
    return min(1.0, (step + 1) / 100, 0.02 + 0.98 * (steps - step) / (steps / 2))


def windows(tokens: np.ndarray, context: int, generator: np.random.Generator) -> torch.Tensor:
    starts = generator.integers(0, len(tokens) - context, TOKENS_PER_STEP // context)
    return torch.from_numpy(np.stack([tokens[s : s + context] for s in starts]).astype(np.int64))


@torch.no_grad()
def perplexity(model: GPT2LMHeadModel, tokens: np.ndarray, rows: int | None = None) -> float:
    """Perplexity over consecutive windows of the model's context; the first token of a window is not predicted."""
    model.eval()
    count = len(tokens) // CONTEXT
    batch = torch.from_numpy(tokens[: count * CONTEXT].astype(np.int64)).view(count, CONTEXT)[:rows]
    losses = [model(input_ids=row[None], labels=row[None]).loss.item() for row in batch]
    model.train()
    return math.exp(sum(losses) / len(losses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hold-out", default="james", help="books whose name contains this are never read")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    train, held = prepare(args.books, args.out, args.hold_out)
    model = build_model()
    optimizers = build_optimizers(model)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    first, checkpoint = 0, args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]

    started = time.time()
    for step in range(first, args.steps):
        factor = learning_rate_factor(step, args.steps)
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * factor
        batch = windows(train, 256 if step < 0.7 * args.steps else CONTEXT, np.random.default_rng(step))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            left = (time.time() - started) / (step + 1 - first) * (args.steps - step - 1) / 60
            print(f"step {step + 1} loss {loss.item():.3f} minutes left {left:.1f}", flush=True)
        if (step + 1) % 500 == 0:
            print(f"  held-out perplexity (first 64 windows) {perplexity(model, held, 64):.2f}", flush=True)
            partial = checkpoint.with_suffix(".tmp")
            torch.save(
                {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step + 1},
                partial,
            )
            os.replace(partial, checkpoint)

    target = args.out / "model"
    model.to(torch.bfloat16).save_pretrained(target)
    PreTrainedTokenizerFast(
        tokenizer_file=str(args.out / "tokenizer.json"), eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    ).save_pretrained(target)
    figures = {
        "steps": args.steps,
        "train_tokens_read": args.steps * TOKENS_PER_STEP,
        "train_tokens": len(train),
        "held_out_tokens": len(held),
        "held_out_perplexity_bf16_weights": perplexity(model.to(torch.float32), held),
        "torch": torch.__version__,
    }
    (args.out / "pretrain.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
