"""transformers' text-generation pipeline over a localised model writes what generate writes, one by one and batched."""

import pytest
from transformers import AutoTokenizer, GPT2LMHeadModel, pipeline

import proloc

HOW = {"max_new_tokens": 12, "do_sample": False}
PROMPTS = ["The statement", "An expression list containing at least one comma yields", "Names refer to objects. They"]


@pytest.fixture
def parts(model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = GPT2LMHeadModel.from_pretrained(model_folder).eval()
    for name, parameter in model.named_parameters():
        if "attn" in name:
            parameter.data.mul_(8.0)  # what attention reads decides the next token, so that the dial shows in the text
    return proloc.localize(model, proloc.Uniform(value=1.0), proloc.FixedBlocks(4)), tokenizer


def generated(model, tokenizer, prompt):
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(**inputs, **HOW, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_pipeline_writes_what_generate_writes(parts, position, batch_size):
    model, tokenizer = parts
    write = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    with proloc.dial(model, position):
        texts = [answer[0]["generated_text"] for answer in write(PROMPTS, batch_size=batch_size, **HOW)]
        assert texts == [generated(model, tokenizer, prompt) for prompt in PROMPTS]


def test_the_dial_moves_the_text_of_the_pipeline(parts):
    model, tokenizer = parts
    write = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    texts = []
    for position in (0.0, 1.0):
        with proloc.dial(model, position):
            texts.append([answer[0]["generated_text"] for answer in write(PROMPTS, **HOW)])
    assert texts[0] != texts[1]
