"""How far a run is, on a terminal and elsewhere."""

import sys

import pytest

from fleetpulse.local.progress import progress, say


def test_on_a_terminal_it_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with progress(10, say) as show:
        show(5, "half of it")
    told = capsys.readouterr().out
    assert "50%" in told
    assert "half of it" in told


def test_elsewhere_it_is_a_line_now_and_then() -> None:
    told: list[str] = []
    with progress(100, told.append) as show:
        for tenth in range(200):
            show(tenth / 10, f"{tenth / 10:g} s")
    assert told == ["5 s", "10 s", "15 s"]
