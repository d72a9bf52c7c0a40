"""Small bar charts as SVG, drawn here: the page needs no script for them and loads none."""

from collections.abc import Mapping

from markupsafe import Markup

from receiver.journal.activity import HOURS

_WIDTH, _HEIGHT, _GAP = 10, 40, 2
# From the bottom up; the rest of the outcomes says nothing about how an action did.
_LAYERS = (("succeeded", "good"), ("failed", "bad"), ("unknown", "bad"), ("skipped", "rest"),
           ("cancelled", "rest"))  # fmt: skip


def draw(hours: Mapping[int, Mapping[str, int]], what: str = "runs") -> Markup:
    """Return a bar for each of the last hours, the newest at the right, in layers by outcome."""
    tallest = max((sum(outcomes.values()) for outcomes in hours.values()), default=0)
    bars = Markup("")
    for hour, outcomes in sorted(hours.items()):
        bottom = float(_HEIGHT)
        for outcome, layer in _LAYERS:
            number = outcomes.get(outcome, 0)
            if number:
                # One of a thousand must be seen, too.
                height = max(1.5, number / tallest * (_HEIGHT - 6))
                bottom -= height
                bars += Markup(
                    '<rect class="{}" x="{}" y="{:.1f}" width="{}" height="{:.1f}"/>'
                ).format(layer, hour * (_WIDTH + _GAP), max(bottom, 0), _WIDTH, height)
    return Markup(
        '<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}" '
        'preserveAspectRatio="none">'
        '<line class="axis" x1="0" x2="{width}" y1="{height}" y2="{height}"/>{bars}</svg>'
    ).format(
        width=HOURS * (_WIDTH + _GAP) - _GAP, height=_HEIGHT, label=_words(hours, what), bars=bars
    )


def _words(hours: Mapping[int, Mapping[str, int]], what: str) -> str:
    sums = {
        outcome: number
        for outcome, _ in _LAYERS
        if (number := sum(outcomes.get(outcome, 0) for outcomes in hours.values()))
    }
    said = ", ".join(f"{number} {outcome}" for outcome, number in sums.items())
    return f"{what} that ended in the last {HOURS} hours: {said or 'none'}"
