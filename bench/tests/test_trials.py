from __future__ import annotations

import pytest

from bench.cases import CASES, Case, Trial
from bench.tables import (
    HEADINGS,
    duration,
    factor,
    figures,
    markdown,
    reports,
    side_by_side,
    volume,
)
from bench.trials import Comparison, Reading, Served, middle

CASE = Case(
    name="whole",
    title="whole array",
    prepare=lambda source: Trial(lambda: None),
    memory=True,
    rounds=1,
    latency_ms=None,
    data="field",
)


def reading(
    seconds: float,
    *,
    zarr: str = "3.4.2",
    requests: int = 1,
    sent: int = 1000,
    peak: int | None = 10**9,
    digest: str = "same",
    problems: tuple[str, ...] = (),
    report: dict[str, int] | None = None,
) -> Reading:
    served = tuple(Served(0, seconds, sent, number + 1) for number in range(requests))
    return Reading(
        zarr=zarr,
        seconds=seconds,
        rounds=1,
        served=served,
        peak=peak,
        baseline=60_000_000,
        digest=digest,
        problems=problems,
        report=report,
    )


def comparison(
    stock: list[Reading], fork: list[Reading], **tuned: tuple[Reading, ...]
) -> Comparison:
    return Comparison(CASE, CASE.title, tuple(stock), tuple(fork), tuned)


def test_the_reading_of_median_duration_counts() -> None:
    first, second, third = reading(3), reading(1), reading(2)
    assert middle([first, second, third]) is third
    assert middle([first, second]) is second
    assert comparison([first, second, third], [reading(0.5)]).faster == 4


def test_requests_and_bytes_are_those_of_one_round() -> None:
    served = tuple(Served(0, 1, 100, 1) for _ in range(20))
    rounds = Reading(
        zarr="3.4.2",
        seconds=1,
        rounds=10,
        served=served,
        peak=None,
        baseline=None,
        digest="",
        problems=(),
    )
    assert (rounds.requests, rounds.sent, rounds.in_flight) == (2, 200, 1)


def test_different_values_are_a_problem() -> None:
    assert comparison([reading(1)], [reading(1)]).problems == []
    differing = comparison([reading(1)], [reading(1), reading(1, digest="other")])
    assert differing.problems == ["not all sides read the same values"]
    unseen = comparison([reading(1)], [reading(1, zarr="fork", problems=("saw nothing",))] * 2)
    assert unseen.problems == ["fork: saw nothing"]


def test_the_fastest_setting_of_stock_counts() -> None:
    fused, many = (reading(0.5),), (reading(0.4),)
    how, tuned = comparison([reading(1)], [reading(0.1)], fused=fused, many=many).best_tuned
    assert (how, tuned.seconds) == ("many", 0.4)
    assert comparison([reading(0.3)], [reading(0.1)], fused=fused).best_tuned[0] == "default"


def test_side_by_side() -> None:
    ((stock, fork),) = side_by_side(
        [comparison([reading(2.5, requests=1024)], [reading(0.25, requests=5)])]
    )
    assert stock == ("whole array", "stock", "2.50 s", "1,024", "1.02 MB", "1,024", "")
    assert fork == ("", "fork", "250 ms", "5", "5.00 kB", "5", "10.0x")
    assert len(HEADINGS) == len(stock) == len(fork)


def test_reports() -> None:
    report = {
        "requests": 1024,
        "reads": 7,
        "merged": 6,
        "nbytes": 12_345,
    }
    told = comparison([reading(2)], [reading(1, report=report)])
    (line,) = reports([told, comparison([reading(2)], [reading(1)])])
    assert line.startswith("whole array  1,024 requests, 7 reads (6 merged), ")
    assert line.endswith(", 12.3 kB")
    assert reports([]) == []


def test_markdown_of_a_case_that_is_served() -> None:
    *_, row = markdown([comparison([reading(2)], [reading(0.1, peak=5 * 10**8)])]).splitlines()
    assert "| 1 → 1 | 1.00 kB → 1.00 kB | 1.00 GB → 500 MB (60.0 MB before) |" in row


def test_markdown_of_a_case_that_is_not() -> None:
    unserved = comparison([reading(2, requests=0, peak=None)], [reading(1, requests=0, zarr="f")])
    headings, rule, row = markdown([unserved]).splitlines()
    assert headings.startswith(
        "| case | read | zarr 3.4.2 | tuned | zarr f | tuned | to stock | both tuned |"
    )
    assert headings.count("|") == rule.count("|") == row.count("|")
    assert row.startswith(
        "| `whole` | whole array | 2.00 s | 2.00 s (default) | 1.00 s | 1.00 s (default) | 2.00x | 2.00x |"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.34, "12.3 s"), (1, "1.00 s"), (0.9996, "1000 ms"), (0.0224, "22.4 ms"), (6e-4, "600 µs")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (9_520, "9.52 kB"), (1_482_399_744, "1.48 GB")]
)
def test_volume(size: int, text: str) -> None:
    assert volume(size) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.957, "0.96x"), (9.996, "10.0x"), (16.84, "16.8x"), (128.2, "128x")]
)
def test_factor(value: float, text: str) -> None:
    assert factor(value) == text


def test_cases_are_registered_under_their_names() -> None:
    assert all(name == case.name for name, case in CASES.items())


def test_other_libraries_have_columns() -> None:
    beside = Comparison(
        CASE, CASE.title, (reading(2),), (reading(1),), {}, {"floor": (reading(0.5), reading(0.5))}
    )
    without = comparison([reading(2)], [reading(1)])
    headings, _, first, second = markdown([beside, without]).splitlines()
    assert headings.endswith("| floor |")
    assert first.endswith("| 500 ms |")
    assert second.endswith("|  |")
    sides = figures(beside)["sides"]
    assert {name: side["seconds"] for name, side in sides.items()} == {
        "stock": [2],
        "fork": [1],
        "floor": [0.5, 0.5],
    }


def test_the_fork_is_tuned_as_well() -> None:
    tuned = {"128": (reading(1),), "Fused": (reading(3),)}
    faster = {"128": (reading(0.7),), "Fused": (reading(0.4),)}
    both = Comparison(CASE, CASE.title, (reading(2),), (reading(0.5),), tuned, fork_tuned=faster)
    assert "| 1.00 s (128) | 500 ms | 400 ms (Fused) | 4.00x | 2.50x |" in markdown([both])
    assert set(figures(both)["sides"]) == {"stock", "fork", *tuned, "fork 128", "fork Fused"}
