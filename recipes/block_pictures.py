"""The pictures of docs/blocks.md: one sample text cut by every partitioner that ``proloc blocks`` can show.

    python recipes/block_pictures.py

Writes docs/blocks/KIND.svg. Thresholds are calibrated to blocks of 50 tokens on the sample, so that the pictures differ
in where the boundaries are and not in how many; sentences, paragraphs and valleys are as many as the text has.
"""

from html import escape
from pathlib import Path

from proloc.marked import MarkedText
from proloc.marking import KINDS, mark_blocks

FOLDER = Path(__file__).parents[1] / "docs" / "blocks"
MEAN_LENGTH = 50
WIDTH, STRIP, PLOT, GAP = 760, 22, 58, 6
TINTS = ("#a9cfee", "#f6c59d", "#a5dcc4", "#e5b3d2", "#ddd08e")


def picture(marked: MarkedText) -> str:
    """Paragraphs above, blocks below them, and the scores with their threshold."""
    size = len(marked.tokens)

    def x(place: int) -> float:
        return WIDTH * place / size

    def strip(starts: list[int], top: float, labels: list[str], tints: tuple[str, ...]) -> list[str]:
        parts = []
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], size], strict=True)):
            tint, width = tints[number % len(tints)], x(end) - x(start)
            parts.append(
                f'<rect x="{x(start):.1f}" y="{top}" width="{max(width - 1, 0.5):.1f}" height="{STRIP}" fill="{tint}"/>'
            )
            if labels:
                parts.append(f'<text x="{x(start) + 5:.1f}" y="{top + 15}" fill="#222">{escape(labels[number])}</text>')
        return parts

    paragraphs = [0, *(i + 1 for i in range(size - 1) if "".join(marked.tokens[: i + 1]).endswith("\n\n"))]
    parts = strip(paragraphs, 0, ["steam engine", "condenser", "bread", "octopus"], ("#e9e9e9",))
    parts += strip(marked.starts, STRIP + GAP, [], TINTS)
    for home, block in marked.homes.items():  # the lower half of what leads a block has its colour
        left, width = x(home), x(marked.starts[block] - home)
        parts.append(
            f'<rect x="{left:.1f}" y="{STRIP * 1.5 + GAP}" width="{width:.1f}" height="{STRIP / 2}" '
            f'fill="{TINTS[block % len(TINTS)]}"/>'
        )
    height = 2 * STRIP + GAP
    points = [(place, score) for place, score in enumerate(marked.scores) if score is not None]
    if marked.meaning and points:
        values = [score for _, score in points] + ([] if marked.threshold is None else [marked.threshold])
        low, spread = min(values), (max(values) - min(values)) or 1.0
        bottom = height + GAP + PLOT - 4

        def y(score: float) -> float:
            return bottom - (PLOT - 8) * (score - low) / spread

        if marked.threshold is not None:
            level = y(marked.threshold)
            parts.append(f'<path d="M0 {level:.1f}H{WIDTH}" stroke="#d55e00" stroke-dasharray="5 4" fill="none"/>')
        opened = set(marked.starts)
        for place, score in points:
            colour, radius = ("#0072b2", 3.5) if place in opened else ("#8a8a8a", 1.8)
            parts.append(f'<circle cx="{x(place):.1f}" cy="{y(score):.1f}" r="{radius}" fill="{colour}"/>')
        height += GAP + PLOT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-4 -4 {WIDTH + 8} {height + 8}" width="{WIDTH + 8}" '
        f'font-family="sans-serif" font-size="11"><title>{escape(marked.summary())}</title>'
        f'<rect x="-4" y="-4" width="{WIDTH + 8}" height="{height + 8}" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def main() -> None:
    text = (FOLDER / "sample.txt").read_text(encoding="utf-8").strip()
    for kind in KINDS:
        wanted = None if kind in {"sentence", "paragraph", "random", "tiling"} else MEAN_LENGTH
        marked = mark_blocks(text, kind=kind, mean_length=wanted)
        (FOLDER / f"{kind}.svg").write_text(picture(marked), encoding="utf-8")
        print(marked.summary())


if __name__ == "__main__":
    main()
