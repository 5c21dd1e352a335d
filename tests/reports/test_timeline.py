"""The timeline of states and its picture."""

import json

import numpy as np
import pytest
from PIL import Image

from lighter_freezers.reports.timeline import Timeline, rows_of
from lighter_freezers.reports.timeline_picture import draw_timeline

TOP = 110  # of the rows
BLUE, ORANGE, GREY = (47, 109, 170), (240, 168, 24), (207, 207, 207)  # frozen, trainable, user-frozen


def gpt_components(num_blocks: int) -> list[str]:
    blocks = [f"{part}.{block}" for block in range(num_blocks) for part in ("ln_1", "attn", "ln_2", "mlp")]
    return ["wte", "wpe", *blocks, "ln_f"]


@pytest.fixture
def timeline() -> Timeline:
    timeline = Timeline(["wte", "attn.0", "lm_head"])
    timeline.record(0, {"wte": "user-frozen", "attn.0": "frozen", "lm_head": "trainable"})
    timeline.record(30, {"attn.0": "trainable"})
    return timeline


def pixels(timeline: Timeline, last_step: int) -> np.ndarray:
    return np.asarray(draw_timeline(timeline, last_step)).astype(int)


def share_of(picture: np.ndarray, colour: tuple[int, int, int]) -> float:
    """Share of the coloured part of the rows that has this colour; the legend is cut off."""
    rows = picture[TOP:-100]
    counts = [int((rows == np.array(c)).all(axis=-1).sum()) for c in (BLUE, ORANGE, GREY)]
    return counts[(BLUE, ORANGE, GREY).index(colour)] / sum(counts)


def test_spans_run_from_event_to_event_and_end_at_the_last_step(timeline):
    """A row's spans begin at the first event, change where its state does and end at the last step."""
    assert timeline.spans(["attn.0"], 100) == [(0, 30, "frozen"), (30, 100, "trainable")]
    assert timeline.spans(["lm_head"], 100) == [(0, 100, "trainable")]


def test_an_earlier_step_drops_the_future(timeline):
    """A run resumed from step 20 does not show what the first run did at step 30."""
    timeline.record(20, {"wte": "user-frozen", "attn.0": "frozen", "lm_head": "trainable"})
    assert timeline.steps == [0]
    timeline.record(40, {"attn.0": "trainable"})
    assert timeline.spans(["attn.0"], 50) == [(0, 40, "frozen"), (40, 50, "trainable")]


def test_a_step_sent_again_replaces_what_it_said(timeline):
    """The state re-sent at a step on resume wins over the one recorded there."""
    timeline.record(30, {"attn.0": "partial"})
    assert timeline.spans(["attn.0"], 31) == [(0, 30, "frozen"), (30, 31, "partial")]


def test_state_survives_json(timeline):
    """The saved state is plain: through JSON and back it gives the same timeline."""
    restored = Timeline.from_state(json.loads(json.dumps(timeline.to_state())))
    assert restored.to_state() == timeline.to_state()
    restored.record(40, {"wte": "trainable"})
    assert timeline.steps == [0, 30]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (("frozen", "frozen"), "frozen"),
        (("frozen", "user-frozen"), "frozen"),
        (("user-frozen", "user-frozen"), "user-frozen"),
        (("frozen", "trainable"), "partial"),
        (("trainable", "partial"), "partial"),
        (("LoRA only", "user-frozen"), "LoRA only"),
        (("LoRA only", "trainable"), "partial"),
    ],
)
def test_components_that_share_a_row_have_one_state(states, expected):
    """A merged row is partial where some of it trains, frozen where nothing does."""
    timeline = Timeline(["attn.0", "mlp.0"])
    timeline.record(0, dict(zip(timeline.components, states, strict=True)))
    assert timeline.spans(timeline.components, 1) == [(0, 1, expected)]


def test_few_components_have_a_row_each_and_many_share_one_per_block():
    """Above 24 rows the parts of a block are merged; what has no index keeps its row."""
    assert list(rows_of(gpt_components(2))) == gpt_components(2)
    rows = rows_of(gpt_components(32))
    assert list(rows)[:3] == ["wte", "wpe", "h.0"]
    assert rows["h.31"] == ["ln_1.31", "attn.31", "ln_2.31", "mlp.31"]
    assert len(rows) == 35


@pytest.mark.parametrize("name", ["h.{}", "layers.{}", "features.{}.conv", "{}"])
@pytest.mark.parametrize("number", [60, 1000, 8000])
def test_any_number_of_blocks_has_a_bounded_number_of_rows(name, number):
    """Blocks that follow each other share a row that names the first and the last, and none is lost."""
    components = ["stem", *(name.format(index) for index in range(number)), "head"]
    rows = rows_of(components)
    assert 20 < len(rows) <= 48
    assert list(rows)[-1] == "head"
    assert [member for members in rows.values() for member in members] == components
    assert list(rows)[1] == name.format(f"0-{len(rows[list(rows)[1]]) - 1}")


def test_merged_rows_keep_stacks_apart_and_single_names_whole():
    """Encoder and decoder blocks do not mix, and a block of one component keeps its name."""
    components = [
        f"{stack}.{part}.{i}" for stack in ("enc", "dec") for i in range(20) for part in ("attn", "mlp")
    ]
    rows = rows_of([*components, *(f"layers.{i}" for i in range(20, 22))])
    assert rows["dec.h.0"] == ["dec.attn.0", "dec.mlp.0"]
    assert rows["layers.20"] == ["layers.20"]


def test_picture_shows_the_shares_of_time(timeline):
    """Of three rows one is grey, one orange, and one blue for 30 of 100 steps, then orange."""
    picture = pixels(timeline, 100)
    assert share_of(picture, GREY) == pytest.approx(1 / 3, abs=0.01)
    assert share_of(picture, BLUE) == pytest.approx(0.1, abs=0.01)
    assert share_of(picture, ORANGE) == pytest.approx(0.7 / 1.2 - 0.016, abs=0.02)


def test_partial_is_striped_in_both_colours():
    """A partly frozen row has stripes of frozen and trainable, so it needs no colour of its own."""
    timeline = Timeline(["a"])
    timeline.record(0, {"a": "partial"})
    assert 0.2 < share_of(pixels(timeline, 10), BLUE) < 0.8


@pytest.mark.parametrize("num_blocks", [1, 15, 100, 1000])
def test_picture_stays_readable_from_few_rows_to_many(num_blocks):
    """The height grows with the rows up to a bound; names are written left of the rows."""
    timeline = Timeline(gpt_components(num_blocks))
    timeline.record(0, dict.fromkeys(timeline.components, "frozen"))
    image = draw_timeline(timeline, 100)
    assert image.height <= TOP + 1800 + 100
    rows = np.asarray(image.convert("L"))[TOP:-100]
    names = rows[:, : int((rows < 200).mean(axis=0).argmax())]  # left of the first coloured column
    assert (names < 128).sum() > 50


@pytest.mark.parametrize("last_step", [0, 1, 7, 123_456_789])
def test_any_length_of_run_can_be_drawn(last_step):
    """A checkpoint before the first step and a very long run both give a picture."""
    timeline = Timeline(["a"])
    timeline.record(0, {"a": "frozen"})
    image = draw_timeline(timeline, last_step)
    assert isinstance(image, Image.Image)
    assert np.asarray(image)[:, -3:].min() == 255  # nothing is cut off at the right


@pytest.mark.parametrize("is_card", [True, False])
def test_a_card_has_no_edge_that_every_second_pixel_would_miss(timeline, is_card):
    """TensorBoard shows every second pixel: no neighbours are ink and paper, as in a full picture."""
    grey = np.asarray(draw_timeline(timeline, 30, is_card=is_card).convert("L"), dtype=int)
    steepest = max(np.abs(np.diff(grey, axis=axis)).max() for axis in (0, 1))
    assert (steepest < 150) == is_card
