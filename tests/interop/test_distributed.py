"""Two processes (DDP, checkpointed DDP, FSDP2, and LocalityTrainer under torchrun) compute what one computes.

Run by torchrun, this file is the worker: ``test_distributed.py cases|train|train-checkpointed FOLDER``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import random_ids, tiny_model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments

import proloc
from proloc.hf import find_state
from proloc.training import queries_with_target

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parents[1]
FAMILIES = ("gpt2", "llama", "mistral")
WAYS = ("ddp", "checkpointed", "fsdp2")
DIALS = (0.0, 0.5, 1.0)
PENALTY = proloc.LowFidelity(phi=0.9, weight=2.0)


def batch():
    """Four rows with different numbers of targets, so that a mean of means would be wrong."""
    ids = random_ids(4, 21)
    labels = ids.clone()
    for row in range(4):
        labels[row, : 5 * row] = -100
    return ids, labels


def localised(family):
    return proloc.localize(tiny_model(family), proloc.Polynomial(beta=1), proloc.FixedBlocks(5))


def backward(model, ids, labels, share):
    """Gradients of cross-entropy and penalty, both per target of the whole batch."""
    targets = queries_with_target(batch()[1]).sum()
    with proloc.recording(model, "fidelity") as recorder:
        loss = model(input_ids=ids, labels=labels, num_items_in_batch=targets, use_cache=False).loss
        penalty = PENALTY.summed(recorder, find_state(model).localities, queries_with_target(labels)) / targets
        (share * (loss + penalty)).backward()


def logits(model, ids):
    found = []
    for position in DIALS:
        with proloc.dial(model, position), torch.no_grad():
            found.append(model(input_ids=ids, use_cache=False).logits)
    return torch.stack(found)


def spread(model, way):
    """The model as ``way`` wraps it."""
    if way == "checkpointed":
        model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if way != "fsdp2":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for layer in model.transformer.h if hasattr(model, "transformer") else model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def cases(folder):
    """Worker: every family in every way on this process's half of the batch; process 0 writes what all found."""
    distributed.init_process_group("gloo")
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    ids, labels = (part.chunk(processes)[rank] for part in batch())
    results = {}
    for family in FAMILIES:
        for way in WAYS:
            inner = localised(family)
            model = spread(inner, way)
            mine = logits(model, ids)
            halves = [torch.empty_like(mine) for _ in range(processes)]
            distributed.all_gather(halves, mine)
            backward(model, ids, labels, share=processes)  # both average gradients over the processes
            gradients = {name: whole(parameter.grad) for name, parameter in inner.named_parameters()}
            results[family, way] = {"logits": torch.cat(halves, dim=1), "gradients": gradients}
    if rank == 0:
        torch.save(results, Path(folder) / "cases.pt")
    distributed.destroy_process_group()


def whole(gradient):
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient


class Windows(torch.utils.data.Dataset):
    def __init__(self):
        self.ids = random_ids(16, 24)
        self.labels = self.ids.clone()
        for row in range(16):
            self.labels[row, : row % 7 * 3] = -100

    def __len__(self):
        return 16

    def __getitem__(self, row):
        return {"input_ids": self.ids[row], "labels": self.labels[row]}


def train(folder, **arguments):
    """Some steps of LocalityTrainer with a global batch of 8, in one process or as worker of two."""
    torch.set_num_threads(1)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = proloc.LocalityTrainer(
        model=localised("llama"), train_dataset=Windows(), penalty=PENALTY,
        args=TrainingArguments(
            str(folder), max_steps=4, per_device_train_batch_size=8 // processes, learning_rate=1e-3, logging_steps=1,
            report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, lr_scheduler_type="constant",
            **arguments,
        ),
    )  # fmt: skip
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "cross_entropy" in entry]
    if trainer.is_world_process_zero():
        torch.save({"log": log, "weights": trainer.model.state_dict()}, Path(folder) / "trained.pt")
    if distributed.is_initialized():  # left to the interpreter's end, gloo's threads abort the process now and then
        distributed.barrier()
        distributed.destroy_process_group()


def torchrun(work, folder):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), *sys.path]))}
    environment.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", MASTER_ADDR="127.0.0.1")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, __file__, work, str(folder)], env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torchrun("cases", folder)
    return torch.load(folder / "cases.pt")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_have_the_logits_and_gradients_of_one(found, family, way):
    model, (ids, labels) = localised(family), batch()
    torch.testing.assert_close(found[family, way]["logits"], logits(model, ids), rtol=1e-4, atol=1e-5)
    backward(model, ids, labels, share=1)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[family, way]["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("work", ["train", "train-checkpointed"])
def test_two_processes_train_like_one(tmp_path, work):
    (tmp_path / "two").mkdir()
    torchrun(work, tmp_path / "two")
    train(tmp_path)
    one, two = (torch.load(folder / "trained.pt") for folder in (tmp_path, tmp_path / "two"))
    for ours, theirs in zip(two["log"], one["log"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert theirs["penalty"] > 0
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    work, out = sys.argv[1:]
    if work == "cases":
        cases(out)
    else:
        train(out, gradient_checkpointing=work == "train-checkpointed")
