"""Runs a whole study: checks it, prepares it, spreads its runs over processes, and continues after an interruption."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import queue
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from proloc.errors import ProlocError
from proloc.study.config import Condition, StudyConfig
from proloc.study.plan import check, comparable, extend_plan, in_stages
from proloc.study.precision import precision_warning
from proloc.study.results import (
    PREPARED_FILE,
    RunResult,
    StudyRecord,
    load_run,
    run_name,
    run_path,
    save_record,
)

if TYPE_CHECKING:  # importing it for real would import torch
    from proloc.hf.models import ModelFacts

# Weights, gradients and AdamW's two moments in fp32, and room for activations.
BYTES_PER_PARAMETER = 16
ACTIVATION_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Outcome:
    """How a study ended.

    Attributes:
        ran: runs computed now.
        kept: runs that were finished before.
        failed: names of runs that failed; their files say why, and the next start tries them again.
    """

    ran: int
    kept: int
    failed: list[str]


def run_study(
    config: StudyConfig, folder: Path, *, workers: int | None = None, console: Console | None = None
) -> Outcome:
    """Run what is missing of a study and write one JSON per run.

    Args:
        config: the study.
        folder: results; a folder with results of the same configuration is continued.
        workers: processes; None = as many as cores and memory allow, 1 on a GPU.
        console: where progress is shown.

    Raises:
        ProlocError: something is wrong with the configuration, the model, the text or the folder; nothing was run.
    """
    console = console or Console(stderr=True)
    with console.status("checking the model, the text and the folder"):
        facts = check(config, folder)
    if warning := precision_warning(config.training.precision):
        console.print(warning, style="yellow", highlight=False)
    with _only_one(folder), _progress(console) as progress:
        if not all((folder / name).is_file() for name in ("study.json", PREPARED_FILE)):
            _prepare(config, folder, facts, progress)
        text_sha256 = extend_plan(config, folder).text.get("sha256")
        pending = [
            (condition, seed)
            for condition in config.conditions
            for seed in config.seeds
            if not _is_finished(run_path(folder, condition.name, seed), text_sha256)
        ]
        stages = in_stages(config, folder, pending)
        pending = [each for stage in stages for each in stage]
        kept = len(config.conditions) * len(config.seeds) - len(pending)
        processes = min(workers or _affordable_workers(facts.num_parameters), max(len(pending), 1))
        failed = _run_all(config, folder, stages, processes, kept, progress)
    if not failed:
        for while_running in ("checkpoints", "teachers"):
            shutil.rmtree(folder / while_running, ignore_errors=True)
    return Outcome(ran=len(pending), kept=kept, failed=failed)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Two studies in one folder would write the same checkpoints; the second is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ProlocError(
            f"another study is running in {folder}; wait for it, or choose another with --out."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _prepare(config: StudyConfig, folder: Path, facts: "ModelFacts", progress: Progress) -> None:
    """Store the windows and partitioners, and the plan with the unmodified model's measures where there is none yet."""
    from proloc.hf.models import load_tokenizer
    from proloc.study.faithful import check_explain
    from proloc.study.prepare import prepare, save_prepared
    from proloc.study.run import baseline
    from proloc.study.text import describe_source, digest_explained
    from proloc.versions import versions

    bar = progress.add_task("preparing the text and its blocks", total=None)
    prepared = prepare(config)
    check_explain(config, prepared, load_tokenizer(config.model), facts.max_context)
    save_prepared(prepared, folder)

    def show(phase: str, done: int, total: int) -> None:
        progress.update(bar, description=f"{phase} the unmodified model", completed=done, total=total)

    if not (folder / "study.json").is_file():
        record = StudyRecord(
            name=config.name,
            config=comparable(config),
            conditions=[condition.name for condition in config.conditions],
            seeds=config.seeds,
            model={
                "name": config.model,
                "num_layers": facts.num_layers,
                "num_heads": facts.num_heads,
                "num_parameters": facts.num_parameters,
            },
            text={
                "source": describe_source(config.text),
                "train_tokens": prepared.train.numel(),
                "held_out_tokens": prepared.held_out.numel(),
                "context": config.training.context,
                "sha256": prepared.text_sha256,
                "explained": digest_explained(config.explain),
            },
            versions=versions(),
            baseline=baseline(config, prepared, show),
        )
        save_record(folder / "study.json", record)
    progress.remove_task(bar)


def _is_finished(path: Path, text_sha256: str | None) -> bool:
    """Whether a run is there; one of another text is never taken for it."""
    if not path.is_file():
        return False
    found = load_run(path)
    if found.status == "finished" and found.config["text"].get("sha256") != text_sha256:
        raise ProlocError(f"{path} was made from another text; choose another folder with --out, or remove it.")
    return found.status == "finished"


def _affordable_workers(parameters: int) -> int:
    import torch

    if torch.cuda.is_available():
        return 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    each = BYTES_PER_PARAMETER * parameters + ACTIVATION_BYTES
    return max(1, min(_cores(), int(0.8 * memory / each)))


def _cores() -> int:
    """The cores that this process may use, where the system says so, else those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run_all(
    config: StudyConfig,
    folder: Path,
    stages: list[list[tuple[Condition, int]]],
    processes: int,
    kept: int,
    progress: Progress,
) -> list[str]:
    """Run everything pending, one stage after the other; the names of the runs that failed."""
    num_pending = sum(len(stage) for stage in stages)
    if not num_pending:
        return []
    overall = progress.add_task("runs", total=kept + num_pending, completed=kept)
    bars: dict[str, TaskID] = {}
    failed = []
    context = multiprocessing.get_context("spawn")
    threads = max(1, _cores() // processes)
    messages = context.Queue()
    with _pool(processes, context, (threads, messages)) as pool:
        for stage in stages:
            waiting: set[Future[RunResult]] = {
                pool.submit(_work, folder, config, condition, seed) for condition, seed in stage
            }
            while waiting:
                done, waiting = wait(waiting, timeout=0.2)
                _show(messages, bars, progress)
                for future in done:
                    result = _result(future)
                    name = run_name(result.condition, result.seed)
                    if result.status == "failed":
                        failed.append(name)
                        progress.console.print(f"[red]{name} failed:[/] {result.error}", highlight=False)
                    if name in bars:
                        progress.remove_task(bars.pop(name))
                    progress.advance(overall)
    return sorted(failed)


@contextlib.contextmanager
def _pool(processes: int, context: Any, start: tuple[Any, ...]) -> Iterator[ProcessPoolExecutor]:
    """A pool whose processes end at once when the study is interrupted: their checkpoints are what counts."""
    pool = ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=start)
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _result(future: Future[RunResult]) -> RunResult:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise ProlocError(
            "a worker process was killed, most likely for want of memory; the same command continues, "
            "with fewer --workers if memory is short."
        ) from error


_messages: Any = None


def _start_worker(threads: int, messages: Any) -> None:
    import torch
    import transformers

    global _messages
    _messages = messages
    for polite in (signal.SIGINT, signal.SIGTERM):
        signal.signal(polite, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()


def _leave_with_parent() -> None:
    """End this worker when the study's process is gone: a second start must not meet the first one's workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # only workers come here
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _work(folder: Path, config: StudyConfig, condition: Condition, seed: int) -> RunResult:
    """One run in a worker process; an error becomes a failed result, so that the others go on."""
    from proloc.study.run import machine, run, run_config
    from proloc.versions import versions

    name, started = run_name(condition.name, seed), datetime.now(UTC)

    try:
        result = run(folder, config, condition, seed, lambda *state: _messages.put((name, *state)))
    except Exception as error:  # whatever it was belongs into the result
        result = RunResult(
            study=config.name,
            condition=condition.name,
            seed=seed,
            status="failed",
            error=f"{type(error).__name__}: {error}"[:2000],
            config=run_config(config, condition, None),
            versions=versions(),
            machine=machine(),
            started=started.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            localities=[],
        )
    save_record(run_path(folder, condition.name, seed), result)
    return result.model_copy(update={"sample": None})


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("time left"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=False,
    )


def _show(messages: Any, bars: dict[str, TaskID], progress: Progress) -> None:
    """Bring the bars up to what the workers last said."""
    while True:
        try:
            name, phase, done, total = messages.get_nowait()
        except queue.Empty:
            return
        if name not in bars:
            bars[name] = progress.add_task(name, total=total)
        progress.update(bars[name], description=f"  {name} {phase}", completed=done, total=total)
