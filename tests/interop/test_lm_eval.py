"""lm-eval scores the localised model: its numbers are our own at every dial, and those of the stock model at dial 0."""

import json
import math

import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

import proloc

pytestmark = pytest.mark.slow
pytest.importorskip("lm_eval", reason="pip install 'proloc[interop]'")

CHOICE = """
task: proloc_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder}/choice.jsonl"}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
PERPLEXITY = """
task: proloc_perplexity
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{folder}/pages.jsonl"}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{page}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
CONTEXT = 64  # of the model in model_folder


@pytest.fixture
def tasks(tmp_path, words, monkeypatch):
    """Two tasks made of real text: which of four continuations is likeliest, and the perplexity of short pages."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lines = [" ".join(part.split()) for part in words.split("\n\n") if len(part) > 200][:24]
    questions = [
        {"question": lines[i][:60].rstrip(), "choices": [lines[(i + j) % 24][60:80] for j in range(4)], "answer": 0}
        for i in range(24)
    ]
    pages = [{"page": line[:60]} for line in lines]
    for name, rows in (("choice", questions), ("pages", pages)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "choice.yaml").write_text(CHOICE.format(folder=tmp_path))
    (tmp_path / "perplexity.yaml").write_text(PERPLEXITY.format(folder=tmp_path))
    return tmp_path, questions, pages


@pytest.fixture
def parts(model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    stock = GPT2LMHeadModel.from_pretrained(model_folder).eval()
    for name, parameter in stock.named_parameters():
        if "attn" in name:
            parameter.data.mul_(8.0)  # what attention reads decides the next token, so that the dial shows
    model = GPT2LMHeadModel(stock.config).eval()
    model.load_state_dict(stock.state_dict())
    return stock, proloc.localize(model, proloc.Uniform(value=1.0), proloc.FixedBlocks(4)), tokenizer


def scored(model, tokenizer, folder):
    """What lm-eval says: accuracy, bits per byte, and the log-likelihood of every choice."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    result = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu", max_length=CONTEXT),
        tasks=["proloc_choice", "proloc_perplexity"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True, bootstrap_iters=0,
    )  # fmt: skip
    samples = sorted(result["samples"]["proloc_choice"], key=lambda sample: sample["doc_id"])
    return {
        "accuracy": result["results"]["proloc_choice"]["acc,none"],
        "bits_per_byte": result["results"]["proloc_perplexity"]["bits_per_byte,none"],
        "choices": torch.tensor([[answer[0] for answer in sample["filtered_resps"]] for sample in samples]),
    }


def computed(model, tokenizer, questions, pages):
    """The same numbers written out."""

    def log_likelihood(context, continuation):
        before = tokenizer(context)["input_ids"] if context else [tokenizer.eos_token_id]
        after = tokenizer(context + continuation)["input_ids"]
        after = after[len(before) :] if context else after
        ids = torch.tensor([(before + after)[-CONTEXT - 1 :]])
        with torch.no_grad():
            logp = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)
        return logp[0, -len(after) :].gather(1, ids[0, -len(after) :, None]).sum().item()

    choices = torch.tensor([[log_likelihood(row["question"], each) for each in row["choices"]] for row in questions])
    nats = sum(log_likelihood("", row["page"]) for row in pages)
    return {
        "accuracy": (choices.argmax(1) == 0).float().mean().item(),
        "bits_per_byte": -nats / sum(len(row["page"].encode()) for row in pages) / math.log(2),
        "choices": choices,
    }


def assert_same(ours, theirs):
    torch.testing.assert_close(ours["choices"], theirs["choices"], rtol=1e-4, atol=1e-3)
    assert ours["accuracy"] == pytest.approx(theirs["accuracy"])
    assert ours["bits_per_byte"] == pytest.approx(theirs["bits_per_byte"], rel=1e-5)


def test_lm_eval_scores_the_model_as_the_dial_stands(tasks, parts):
    (folder, questions, pages), (stock, model, tokenizer) = tasks, parts
    found = {}
    for position in (0.0, 1.0):
        with proloc.dial(model, position):
            found[position] = scored(model, tokenizer, folder)
            assert_same(found[position], computed(model, tokenizer, questions, pages))
    assert_same(found[0.0], scored(stock, tokenizer, folder))
    assert (found[1.0]["choices"] - found[0.0]["choices"]).abs().max() > 0.1
    assert found[1.0]["bits_per_byte"] != pytest.approx(found[0.0]["bits_per_byte"], rel=1e-4)
