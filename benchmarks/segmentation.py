"""Every partitioner against texts with known segments: Pk and WindowDiff, tuned on one half and reported on the other.

    python benchmarks/segmentation.py --choi FOLDER --out benchmarks/results

FOLDER holds Choi's benchmark unpacked (``3-11``, ``3-5``, ``6-8``, ``9-11``); it is not part of this project. A
sentence model is used where ``--sentence-model`` names one; ruptures is needed (``proloc[segment]``). Interrupt it
whenever you like: methods that ``segmentation.json`` already holds are not run again.
"""

import argparse
import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from corpora import Document, read_choi, read_topics
from methods import Method, Remembered, Segmenter, causal, controls, count_tokens, explaining, online, surprise
from tables import write_figure, write_table

from proloc.blocks import SentenceEnds
from proloc.blocks.segmentation import pk, window_diff
from proloc.hf import provide
from proloc.hf.models import load_model, load_tokenizer

MODEL = "builtin"
HIDDEN_LAYER = 4
FEW = 8

Halves: TypeAlias = tuple[Sequence[Document], Sequence[Document]]


def measure(segmenter: Segmenter, documents: Sequence[Document]) -> tuple[float, float, float]:
    """Mean Pk and WindowDiff over documents, in per cent, and blocks found per true segment."""
    found = [segmenter(document) for document in documents]
    scores = [
        (
            pk(document.reference, units),
            window_diff(document.reference, units),
            units[-1] + 1,
            document.reference[-1] + 1,
        )
        for document, units in zip(documents, found, strict=True)
    ]
    errors, differences, blocks, segments = np.array(scores).T
    return 100 * errors.mean(), 100 * differences.mean(), blocks.sum() / segments.sum()


def tune_and_test(method: Method, tuning: Sequence[Document], testing: Sequence[Document]) -> dict[str, Any]:
    """The settings with the lowest Pk on the tuning documents, and what they score on the others."""
    if method.few:
        tuning, testing = tuning[:FEW], testing[:FEW]
    best: tuple[float, str, Segmenter] | None = None
    tried = 0
    for settings, segmenter in method.candidates(tuning):
        tried += 1
        error = measure(segmenter, tuning)[0]
        if best is None or error < best[0]:
            best = (error, settings, segmenter)
    assert best is not None
    tuned, settings, segmenter = best
    errors, differences, blocks = measure(segmenter, testing)
    return {
        "pk": round(errors, 2),
        "window_diff": round(differences, 2),
        "blocks_per_segment": round(blocks, 3),
        "pk_tuning": round(tuned, 2),
        "settings": settings,
        "settings_tried": tried,
        "documents": len(testing),
    }


def run(record: dict[str, Any], corpus: str, halves: dict[str, Halves], methods: list[Method], file: Path) -> None:
    """Add a row for every method that the record does not hold yet, and write the record after each."""
    rows = record.setdefault(corpus, [])
    done = {row["method"] for row in rows}
    for method in methods:
        if method.name in done:
            continue
        started = time.perf_counter()
        results = {name: tune_and_test(method, *half) for name, half in halves.items()}
        seconds = time.perf_counter() - started
        rows.append({"method": method.name, "sort": method.sort, "seconds": round(seconds, 1), "results": results})
        rows.sort(key=lambda row: [each.name for each in methods].index(row["method"]))
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{method.name:40}", *(f"{r['pk']:6.2f} {r['window_diff']:6.2f} |" for r in results.values()), flush=True)


def all_methods(ends: SentenceEnds, sentence_model: str | None, *, sentences: bool) -> list[Method]:
    table = load_model(MODEL).get_input_embeddings().weight.detach()
    embeddings: dict[str, Any] = {"hidden states": Remembered(provide(f"hidden:{HIDDEN_LAYER}:{MODEL}"))}
    if sentence_model:
        embeddings["sentence model"] = Remembered(provide(f"sentence:{MODEL}:{sentence_model}"))
    methods = [*controls(sentences=sentences), *causal(ends, table, count_tokens(len(table)))]
    methods.append(online(ends, "input embeddings", table))
    if sentence_model:
        methods.append(online(ends, "sentence model", embeddings["sentence model"]))
    methods += explaining(ends, "input embeddings", table)
    for name, embedding in embeddings.items():
        methods += explaining(ends, name, embedding)
    return [*methods, surprise(Remembered(provide(f"surprisal:{MODEL}")))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choi", type=Path, help="folder with Choi's benchmark (default: only Python's topics)")
    parser.add_argument("--sentence-model", help="folder or Hub id for sentence-transformers")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(MODEL)
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "segmentation.json"
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    record["versions"] = {name: version(name) for name in ("torch", "transformers", "numpy", "ruptures")}
    record |= {"python": platform.python_version(), "model": MODEL, "hidden_layer": HIDDEN_LAYER}
    if arguments.choi:
        choi = {
            name: (documents[: len(documents) // 2], documents[len(documents) // 2 :])
            for name, documents in read_choi(arguments.choi, tokenizer).items()
        }
        lines = SentenceEnds(ends=tuple(i for i in range(len(tokenizer)) if "\n" in tokenizer.decode([i])))
        run(record, "choi", choi, all_methods(lines, arguments.sentence_model, sentences=True), file)
    ends = SentenceEnds.from_tokenizer(tokenizer)
    run(
        record,
        "topics",
        {"topics": read_topics(tokenizer)},
        all_methods(ends, arguments.sentence_model, sentences=False),
        file,
    )
    write_table(record, arguments.out / "segmentation.md")
    write_figure(record, arguments.out / "segmentation.svg")


if __name__ == "__main__":
    main()
