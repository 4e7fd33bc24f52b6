"""Copies, files, adapters and compilation: what people do with a model besides running it."""

import copy
import importlib.util
import pickle
import tempfile
from typing import Any

import torch
from transformers import PreTrainedModel

from proloc.check.finding import Outcome, difference, worst
from proloc.check.subject import Subject
from proloc.hf import dial, from_pretrained

LARGE = 2_000_000_000  # bytes


def saved(subject: Subject) -> Outcome:
    """Saved to a folder and loaded again, the model gives the same logits bit for bit."""
    if too_large := _too_large(subject, "writing"):
        return too_large
    twin = subject.twin()
    with tempfile.TemporaryDirectory() as folder:
        twin.save_pretrained(folder)
        again = from_pretrained(folder, dtype=torch.float32).eval()
    return Outcome(worst(difference(subject.logits(again, at), subject.logits(twin, at)) for at in (0.5, 1.0)))


def copies(subject: Subject) -> Outcome:
    """deepcopy and pickle give localised models with a dial of their own."""
    if too_large := _too_large(subject, "copying"):
        return too_large
    twin = subject.twin()
    half, whole = (subject.logits(twin, position) for position in (0.5, 1.0))
    others: list[PreTrainedModel] = [copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))]
    errors = [difference(subject.logits(other, 0.5), half) for other in others]
    return Outcome(worst([*errors, difference(subject.logits(twin, 1.0), whole)]))


def compiled(subject: Subject) -> Outcome:
    """torch.compile gives the same logits, and moving the dial compiles nothing again; graphs are run eagerly."""
    graphs: list[Any] = []

    def counting(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    twin = subject.twin()
    expected = {position: subject.logits(twin, position) for position in (0.0, 0.5, 0.75, 1.0)}
    errors, counts = [], []
    torch._dynamo.reset()
    try:
        model: Any = torch.compile(twin, backend=counting)
        for position, logits in expected.items():
            with torch.no_grad(), dial(twin, position):
                ours = model(input_ids=subject.ids, use_cache=False).logits
            errors.append(difference(ours, logits))
            counts.append(len(graphs))
    finally:
        torch._dynamo.reset()
    if counts[0] == 0:
        return Outcome(verdict="FAILED", note="torch.compile captured nothing")
    if counts[-1] != counts[0]:
        return Outcome(verdict="FAILED", note=f"moving the dial compiled {counts[-1] - counts[0]} more graphs")
    return Outcome(worst(errors), note=f"{counts[0]} graphs for {len(counts)} positions of the dial")


def lora(subject: Subject) -> Outcome:
    """A fresh LoRA adapter changes nothing; a trained one gives the same logits apart and merged."""
    if importlib.util.find_spec("peft") is None:
        return Outcome(verdict="not applicable", note="peft is not installed")
    if too_large := _too_large(subject, "copying"):
        return too_large
    from peft import LoraConfig, get_peft_model

    twin = subject.twin()
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(copy.deepcopy(twin), config).eval()
    errors = [difference(subject.logits(adapted, at), subject.logits(twin, at)) for at in (0.5, 1.0)]
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    apart = subject.logits(adapted, 0.5)
    merged = adapted.merge_and_unload()
    errors.append(difference(subject.logits(merged, 0.5), apart))
    return Outcome(worst(errors))


def _too_large(subject: Subject, doing: str) -> Outcome | None:
    size = sum(parameter.numel() * parameter.element_size() for parameter in subject.stock.parameters())
    if size <= LARGE:
        return None
    return Outcome(verdict="not applicable", note=f"left out: {doing} {size / 1e9:.0f} GB; tested on small models")
