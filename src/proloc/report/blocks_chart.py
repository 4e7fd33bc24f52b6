"""The scores of a marked text along its tokens, as SVG written by hand: no ids, nothing loaded (ours)."""

from html import escape

from proloc.marked import MarkedText

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 1000, 190, 46, 24, 10


def chart(marked: MarkedText) -> str:
    """One dot for each score, a line at the threshold, a stroke where a block opens; empty without scores."""
    points = [(place, score) for place, score in enumerate(marked.scores) if score is not None]
    if not marked.meaning or not points:
        return ""
    values = [score for _, score in points] + ([] if marked.threshold is None else [marked.threshold])
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    last = max(len(marked.tokens) - 1, 1)

    def x(place: int) -> str:
        return f"{_LEFT + (_WIDTH - _LEFT - 8) * place / last:.1f}"

    def y(score: float) -> str:
        return f"{_TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - score) / spread:.1f}"

    floor = _HEIGHT - _BOTTOM
    parts = [f'<line class="line" x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{floor}" y2="{floor}"/>']
    for place in marked.starts[1:]:
        score = marked.scores[place]
        top = _TOP if score is None else y(score)
        parts.append(f'<line class="cut" x1="{x(place)}" x2="{x(place)}" y1="{top}" y2="{floor}"/>')
    if marked.threshold is not None:
        level = y(marked.threshold)
        parts.append(f'<line class="level" x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{level}" y2="{level}"/>')
    opened = set(marked.starts)
    for place, score in points:
        sort, size = ("over", 3.5) if place in opened else ("dot", 2)
        parts.append(
            f'<circle class="{sort}" cx="{x(place)}" cy="{y(score)}" r="{size}"><title>token {place}: {score:.3f}'
            "</title></circle>"
        )
    for value in (low, high):
        parts.append(f'<text x="{_LEFT - 6}" y="{float(y(value)) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">token 0</text>')
    parts.append(f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 6}" text-anchor="end">token {len(marked.tokens) - 1}</text>')
    label = escape(f"{marked.meaning}, for each token before which a block might have opened")
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
