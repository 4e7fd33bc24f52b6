"""A model whose answers are known to come from one place: an induction circuit set by hand, weight by weight.

Two GPT-2 layers. The first head of layer 0 attends to the previous token and writes down which it was; that of layer 1
attends to where the previous token was the present one, and predicts the token that stood there. Shown ``K V`` anywhere
and asked ``K``, it says V because of that place and no other. The second heads move nothing: their values are 0. They
attend to everything alike, or, as decoys, to one kind of filler alone.
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from proloc.explaining.passage import Passage, count_units

VOCAB, POSITIONS = 24, 64
# Places in the residual stream: token, position, previous token, answer.
TOKEN, POSITION, PREVIOUS, ANSWER = (0, VOCAB), (24, 24 + POSITIONS), (88, 88 + VOCAB), (112, 112 + VOCAB)
WIDTH = 136
SHARP = 60.0


DECOY = 23


def induction_model(decoy: bool = False) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=POSITIONS, n_embd=WIDTH, n_layer=2, n_head=2, n_inner=4, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)
        _identity(model.transformer.wte.weight, (0, VOCAB), TOKEN)
        _identity(model.transformer.wpe.weight, (0, POSITIONS), POSITION)
        first, second = (block.attn for block in model.transformer.h)
        start, end = POSITION
        _identity(first.c_attn.weight, (start + 1, end), (0, POSITIONS - 1), SHARP)  # query at t asks for t - 1
        _identity(first.c_attn.weight, POSITION, (WIDTH, WIDTH + POSITIONS))
        _identity(first.c_attn.weight, TOKEN, (2 * WIDTH, 2 * WIDTH + VOCAB))
        _identity(first.c_proj.weight, (0, VOCAB), PREVIOUS)
        _identity(second.c_attn.weight, TOKEN, (0, VOCAB), SHARP)
        _identity(second.c_attn.weight, PREVIOUS, (WIDTH, WIDTH + VOCAB))
        _identity(second.c_attn.weight, TOKEN, (2 * WIDTH, 2 * WIDTH + VOCAB))
        _identity(second.c_proj.weight, (0, VOCAB), ANSWER)
        if decoy:
            for attention in (first, second):
                attention.c_attn.bias[WIDTH // 2] = SHARP  # every query of the second head
                attention.c_attn.weight[DECOY, WIDTH + WIDTH // 2] = 1.0
        _identity(model.lm_head.weight, (0, VOCAB), ANSWER, 3.0)
    return model


def _identity(weight: torch.Tensor, rows: tuple[int, int], columns: tuple[int, int], scale: float = 1.0) -> None:
    weight[rows[0] : rows[1], columns[0] : columns[1]] = scale * torch.eye(rows[1] - rows[0])


def induction_passage(seed: int, num_facts: int = 6, filler: int = 3, sinks: int = 1) -> tuple[Passage, int]:
    """Facts ``K V`` with filler, one in a block, then a question about one of them; and the number of its block.

    Tokens 1 to 8 are keys, 9 to 16 values, 17 to 23 filler, 0 opens the text.
    """
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randperm(8, generator=generator)[:num_facts] + first for first in (1, 9))
    asked = int(torch.randint(num_facts, (1,), generator=generator))
    text, blocks = [0], [0]
    for number in range(num_facts):
        noise = torch.randint(17, 24, (filler,), generator=generator).tolist()
        text += [int(keys[number]), int(values[number]), *noise]
        blocks += [number] * (2 + filler)
    text += [17, int(keys[asked]), int(values[asked])]
    blocks += [num_facts] * 3
    block_ids = torch.tensor(blocks)
    end = len(text)
    passage = Passage(
        ids=torch.tensor(text), block_ids=block_ids, units=count_units(block_ids), start=end - 1, end=end,
        num_sinks=sinks,
    )  # fmt: skip
    return passage, asked
