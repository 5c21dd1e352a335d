"""Draws a timeline to a file, layers by steps: a PNG like that of FreezeStateLogger, or an SVG."""

from pathlib import Path
from xml.sax.saxutils import escape

from lighter_freezers.reports.timeline import Timeline, rows_of
from lighter_freezers.reports.timeline_picture import COLOURS, draw_timeline
from lighter_freezers.reports.whole_files import write_png, write_whole

__all__ = ["check_picture_path", "draw_to_file"]

_COLOURS = {**COLOURS, "partial": "url(#partial)"}
_WIDTH, _LEFT, _TOP, _ROW = 1000, 160, 70, 22  # pixels


def check_picture_path(path: str) -> Path:
    """Check the path of an image file, and return it.

    Raises:
        ValueError: It ends neither in `.png` nor in `.svg`.
    """
    if Path(path).suffix not in (".png", ".svg"):
        raise ValueError(f"A picture is a .png or an .svg file. Got '{path}'.")
    return Path(path)


def draw_to_file(timeline: Timeline, last_step: int, path: str) -> None:
    """Draw layers by steps into a file.

    Args:
        timeline: What to draw.
        last_step: The right end of the steps.
        path: `.png` or `.svg`; its folder is created if needed.
    """
    file = check_picture_path(path)
    if file.suffix == ".png":
        write_png(file, draw_timeline(timeline, last_step))
    else:
        write_whole(file, _svg(timeline, last_step))


def _svg(timeline: Timeline, last_step: int) -> str:
    rows = rows_of(timeline.components)
    height = _TOP + _ROW * len(rows) + 50
    scale = _WIDTH / max(last_step, 1)
    drawn = [_legend()]
    for index, (name, members) in enumerate(rows.items()):
        top = _TOP + index * _ROW
        drawn.append(_text(_LEFT - 8, top + _ROW - 7, name, "end"))
        for start, end, state in timeline.spans(members, last_step):
            drawn.append(_box(_LEFT + start * scale, top, (end - start) * scale, state, f"{name}: {state}"))
        for step, mark in timeline.ranks.marks(members):
            drawn.append(_text(_LEFT + step * scale + 6, top + _ROW - 7, mark, "start"))
    bottom = _TOP + _ROW * len(rows) + 18
    for step in sorted({0, *timeline.steps, *timeline.ranks.steps, last_step}):
        drawn.append(_text(_LEFT + step * scale, bottom, f"{step:,}", "middle"))
    drawn.append(_text(_LEFT + _WIDTH / 2, bottom + 22, "optimizer step", "middle"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 40}" height="{height}" '
        'font-family="sans-serif" font-size="13">\n'
        '<defs><pattern id="partial" width="8" height="8" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><rect width="8" height="8" fill="{_COLOURS["frozen"]}"/>'
        f'<rect width="4" height="8" fill="{_COLOURS["trainable"]}"/></pattern></defs>\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def _legend() -> str:
    drawn = [_text(_LEFT, 24, "Which layers train", "start")]
    for index, state in enumerate(_COLOURS):
        x = _LEFT + index * 140
        drawn += [_box(x, 36, 24, state, state), _text(x + 32, 36 + _ROW - 7, state, "start")]
    return "\n".join(drawn)


def _box(x: float, y: float, width: float, state: str, title: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_ROW - 2}" fill="{_COLOURS[state]}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
