"""Training: gradients against the oracle, and against themselves under checkpointing and accumulation."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from proloc.check.finding import Outcome, difference, worst
from proloc.check.subject import Subject
from proloc.hf import dial, recording
from proloc.hf.localize import attention_layers
from proloc.penalty import LowFidelity

# Gradients pass through every layer twice, and are compared parameter by parameter.
LIMIT = 1e-3


def gradients(subject: Subject) -> Outcome:
    """Gradients of the cross-entropy with respect to the first attention layer, which come through all others."""
    batch = {"input_ids": subject.ids, "labels": subject.ids}
    errors = []
    for position in (0.5, 1.0):
        block_ids = subject.blocks(subject.ids)
        sinks = torch.arange(subject.length).expand_as(subject.ids) < subject.sinks
        loss = subject.oracle.forward(block_ids, sinks, subject.retains(position), **batch).loss
        names = _first_layer(subject.stock)
        expected = torch.autograd.grad(loss, [subject.oracle.model.get_parameter(name) for name in names])
        for attention in ("auto", "reference"):
            twin = subject.twin(attention=attention)
            with dial(twin, position):
                ours = torch.autograd.grad(
                    twin(**batch, use_cache=False).loss, [twin.get_parameter(name) for name in names]
                )
            errors += _errors(ours, expected)
    return Outcome(worst(errors), LIMIT)


def checkpointing(subject: Subject) -> Outcome:
    """Both kinds of gradient checkpointing change no gradient; the non-reentrant kind with the penalty too."""
    twin = subject.twin()
    if not twin.supports_gradient_checkpointing:
        return Outcome(verdict="not applicable", note="it does not support gradient checkpointing")
    plain, plain_with_penalty = (_training_gradients(subject, with_penalty=wanted) for wanted in (False, True))
    errors = []
    with _checkpointed(twin, reentrant=False):
        errors += _errors(_training_gradients(subject, with_penalty=False), plain)
        errors += _errors(_training_gradients(subject, with_penalty=True), plain_with_penalty)
    with _checkpointed(twin, reentrant=True):
        errors += _errors(_training_gradients(subject, with_penalty=False), plain)
    return Outcome(worst(errors), LIMIT)


def accumulation(subject: Subject) -> Outcome:
    """Gradients of loss plus penalty over two texts, at once and one after the other with the same normalisation."""
    whole = _training_gradients(subject, with_penalty=True)
    parts = [_training_gradients(subject, with_penalty=True, rows=slice(row, row + 1)) for row in range(2)]
    summed = [sum(pieces[1:], pieces[0]) for pieces in zip(*parts, strict=True)]
    return Outcome(worst(_errors(summed, whole)), LIMIT)


def _errors(ours: list[Tensor] | tuple[Tensor, ...], expected: list[Tensor] | tuple[Tensor, ...]) -> list[float]:
    largest = max(float(each.abs().max()) for each in expected)
    return [
        difference(one, other) * float(other.abs().max()) / largest for one, other in zip(ours, expected, strict=True)
    ]


def _first_layer(model: PreTrainedModel) -> list[str]:
    first = attention_layers(model)[0]
    wanted = {id(parameter) for parameter in first.parameters() if parameter.is_floating_point()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in wanted]


def _training_gradients(subject: Subject, *, with_penalty: bool, rows: slice = slice(None)) -> list[Tensor]:
    """Gradients with respect to the first attention layer in training mode at dial 0.5, normalised by all targets."""
    twin, ids = subject.twin(), subject.ids[rows]
    targets = subject.ids.shape[0] * (subject.length - 1)
    with _training(twin), torch.random.fork_rng(), dial(twin, 0.5), recording(twin, "fidelity") as recorder:
        torch.manual_seed(0)
        loss = twin(input_ids=ids, labels=ids, use_cache=False, num_items_in_batch=torch.tensor(targets)).loss
        if with_penalty:
            localities = [1.0 - retain for retain in subject.retains(1.0)]
            queries = torch.ones_like(ids, dtype=torch.bool)
            queries[:, -1] = False
            loss = loss + LowFidelity(phi=1.0, weight=1.0).summed(recorder, localities, queries) / targets
        loss.backward()  # torch.autograd.grad does not work under reentrant checkpointing
        found = [_gradient(twin.get_parameter(name)) for name in _first_layer(twin)]
        twin.zero_grad()
    return found


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@contextmanager
def _training(model: PreTrainedModel) -> Iterator[None]:
    """Training mode without dropout; only the embedding and the first attention layer are trained, to save memory."""
    rates = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and ("dropout" in name or (name == "p" and isinstance(module, nn.Dropout)))
    ]
    wanted = {id(model.get_parameter(name)) for name in _first_layer(model)}
    wanted |= {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in wanted]
    for module, name, _ in rates:
        setattr(module, name, 0.0)
    for parameter in frozen:
        parameter.requires_grad_(False)
    model.train()
    try:
        yield
    finally:
        model.eval()
        for parameter in frozen:
            parameter.requires_grad_(True)
        for module, name, value in rates:
            setattr(module, name, value)


@contextmanager
def _checkpointed(model: PreTrainedModel, *, reentrant: bool) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the names that every supported transformers knows
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        try:
            yield
        finally:
            model.gradient_checkpointing_disable()
            model.disable_input_require_grads()  # enabling puts this hook in and disabling leaves it
