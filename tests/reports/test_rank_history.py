"""LoRA ranks over time, and where they stand in the picture."""

from lighter_freezers.reports.rank_history import RankHistory
from lighter_freezers.reports.timeline import Timeline
from lighter_freezers.reports.timeline_picture import draw_timeline


def history() -> RankHistory:
    """Two components; one of them changes twice."""
    ranks = RankHistory()
    ranks.record(0, {"attn.0": 4, "attn.1": 4})
    ranks.record(3, {"attn.0": 8})
    ranks.record(5, {"attn.0": 8, "attn.1": 0})
    return ranks


def test_marks_say_what_a_row_has_from_when_on() -> None:
    """A row of several components shows the range of its ranks; one without LoRA shows nothing."""
    assert history().marks(["attn.0"]) == [(0, "r 4"), (3, "r 8")]
    assert history().marks(["attn.0", "attn.1", "ln_f"]) == [(0, "r 4"), (3, "r 4-8"), (5, "r 0-8")]
    assert history().marks(["ln_f"]) == []
    assert history().steps == [0, 3, 5]


def test_a_change_below_the_largest_rank_has_its_step() -> None:
    """A component of two layers: the change is marked, and its largest rank stays."""
    ranks = history()
    ranks.record(6, {"attn.0": 8}, is_change=True)
    ranks.record(7, {"attn.0": 8})  # as after a resume
    assert ranks.steps == [0, 3, 5, 6]
    assert ranks.marks(["attn.0"]) == [(0, "r 4"), (3, "r 8")]


def test_a_resumed_run_forgets_what_came_later() -> None:
    """And two changes at one step are one."""
    ranks = history()
    ranks.record(3, {"attn.0": 4, "attn.1": 2})
    ranks.record(3, {"attn.0": 16})

    assert ranks.marks(["attn.0"]) == [(0, "r 4"), (3, "r 16")]
    assert ranks.marks(["attn.1"]) == [(0, "r 4"), (3, "r 2")]


def test_it_travels_in_plain_types() -> None:
    """With the timeline it belongs to; a timeline from before LoRA has none."""
    timeline = Timeline(["attn.0"])
    timeline.record(0, {"attn.0": "partial"})
    timeline.ranks = history()
    state = timeline.to_state()
    again = Timeline.from_state(state)
    del state["ranks"]

    assert again.ranks.marks(["attn.0"]) == history().marks(["attn.0"])
    assert Timeline.from_state(state).ranks.steps == []


def test_ranks_are_written_into_the_rows() -> None:
    """White plates with dark letters, where rows are high enough; none where they are thin."""
    for num_rows, is_card, has_marks in ((2, False, True), (2000, False, True), (48, True, False)):
        pictures = []
        for ranks in (RankHistory(), history()):
            timeline = Timeline([f"attn.{index}" for index in range(num_rows)])
            timeline.record(0, dict.fromkeys(timeline.components, "partial"))
            timeline.record(7, dict.fromkeys(timeline.components, "frozen"))
            timeline.ranks = ranks
            picture = draw_timeline(timeline, 10, is_card=is_card)
            pictures.append(picture.crop((0, 110, picture.width, picture.height)).tobytes())
        assert (pictures[0] != pictures[1]) == has_marks


def test_several_changes_at_one_step_are_one() -> None:
    """A change at step 0 comes right after the initial state of every run, and does not replace it."""
    timeline = Timeline(["wte", "attn.0"])
    timeline.record(0, {"wte": "user-frozen", "attn.0": "partial"})
    timeline.record(0, {"attn.0": "frozen"})

    assert timeline.spans(["wte"], 5) == [(0, 5, "user-frozen")]
    assert timeline.spans(["attn.0"], 5) == [(0, 5, "frozen")]
