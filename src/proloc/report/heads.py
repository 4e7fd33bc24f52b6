"""Where a head looks, in the terminal (ours)."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proloc.explaining.record import HeadView


def print_head(found: HeadView, console: Console) -> None:
    """The strongest edges with their texts and what they are worth, and how many blocks every layer reads."""
    where = f"layer {found.layer}, head {found.head} of {found.model} at dial {found.dial:g}"
    console.print(
        Text(f"{where}: {found.windows} windows of {found.context} tokens, {found.blocks} blocks", style="bold")
    )
    table = Table(box=None, pad_edge=False, expand=True)
    for name in ("attention", "loss without"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("this block", "reads this one"):
        table.add_column(name, ratio=1)
    for edge in found.edges:
        texts = (Text(_one_line(text)) for text in (edge.query_text, edge.key_text))
        table.add_row(f"{edge.mass:.3f}", f"{edge.loss_change:+.4f}", *texts)
    console.print(table)
    console.print(
        Text(
            f"Loss {found.loss:.4f} nats per token; without any of this head's edges to earlier blocks "
            f"{found.loss_cut:.4f} ({found.loss_cut - found.loss:+.4f})."
        )
    )
    read = ", ".join(f"{number:.1f}" for number in found.blocks_read)
    console.print(Text(f"Effective number of blocks read, by layer: {read}", style="dim"))


def _one_line(text: str, longest: int = 160) -> str:
    shown = "".join(c if c.isprintable() else " " for c in text)
    shown = " ".join(shown.split())
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"
