"""What the README tells people to type works."""

import re
import shlex
from pathlib import Path

import torch
from transformers import TrainingArguments

from proloc.cli import build_parser
from proloc.model_store import resolve

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, "" = without one."""
    fenced = [part.partition("\n") for part in README.split("```")[1::2]]
    return [content for name, _, content in fenced if name == language]


def test_the_python_of_the_readme_runs_on_the_builtin_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ids = torch.randint(1, 4096, (4, 32), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(
        "out",
        max_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    names = {"data": rows, "args": arguments}
    for block in blocks("python"):
        exec(block.replace("openai-community/gpt2", resolve("builtin")), names)
    names["trainer"].train()
    fidelities = [float(number) for number in re.findall(r"0\.\d+|1\.0", capsys.readouterr().out.splitlines()[0])]
    assert len(fidelities) == 8
    assert fidelities[-1] == 1.0, "the last layer of a quintic is local"
    assert names["trainer"].state.log_history


def test_the_commands_of_the_readme_are_commands():
    lines = [line.split("#")[0].strip() for block in blocks("") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("proloc ")]
    assert len(commands) >= 4
    for command in commands:
        build_parser().parse_args(command)
    targets = re.findall(r"^make (\S+)", "\n".join(lines), flags=re.M)
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets)


def test_the_picture_and_the_pages_it_points_to_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).is_file(), target


def test_the_builtin_model_beats_the_five_gram_model_and_stays_small():
    import json

    folder = Path(resolve("builtin")).parent
    model = json.loads((folder / "pretrain.json").read_text())["held_out_perplexity_bf16_weights"]
    baseline = json.loads((folder / "ngram.json").read_text())["perplexity_by_order"]["5"]
    assert model < baseline
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 12_000_000
    page = (ROOT / "docs" / "builtin.md").read_text()
    assert f"**{model:.2f}**" in page
    assert f"**{baseline:.2f}**" in page
