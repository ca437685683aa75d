"""One bar for a whole run: it only goes forward, and shows that a run lives."""

import pytest

from prefect_augment.tasks import _display as display
from prefect_augment.tasks._display import listening, progress, run_progress

Told = list[tuple[float, str]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(display, "BEAT_SECONDS", 0.02)
    return []


def test_the_bar_goes_forward_through_the_steps_and_ends(told: Told) -> None:
    with listening(lambda done, text: told.append((done, text))), run_progress("out"):
        for step in ("ingest", "confirm on the hold-out", "train"):
            with progress(step) as report:
                report(0.5, "half")
    shares = [done for done, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert told[-1][1].startswith("done after ")
    assert any("confirm on the hold-out" in text and " left" in text for _, text in told)


def test_a_step_that_says_nothing_still_shows_that_it_works(told: Told) -> None:
    import time

    with (
        listening(lambda done, text: told.append((done, text))),
        run_progress("out", ("train",)),
        progress("train"),
    ):
        until = time.monotonic() + 30
        while len(told) < 4 and time.monotonic() < until:
            time.sleep(0.01)
    assert [text for _, text in told if text.startswith("train · ")][2:], told


def test_a_run_that_fails_ends_its_bar_where_it_was(told: Told) -> None:
    with (
        pytest.raises(ValueError, match="no"),
        listening(lambda done, text: told.append((done, text))),
        run_progress("out", ("ingest", "train")),
        progress("ingest"),
    ):
        raise ValueError("no")
    assert told[-1][0] < 0.5
    assert told[-1][1].startswith("stopped after ")


def test_without_somebody_who_listens_nothing_is_shown() -> None:
    with run_progress("out"), progress("train", "out") as report:
        report(0.5, "half")
