"""The benchmark's arithmetic: what samples come to, which targets they meet, how they are shown."""

import json
from xml.etree import ElementTree as Xml

import pytest

from bench import picture, report
from bench.figures import Outcome, failures, middle, ratio, values, verdicts
from bench.measures import Sample
from bench.probe import percentile
from bench.rows import BEST, Row, Target, all_rows, at_least, at_most
from bench.run import FOREIGN_LOAD, STOLEN, Run
from bench.scale import FULL

SERVERS = ["mirror", "zot", "nginx-cache", "nginx-static"]
RATE = Row("manifest_rate", "manifests", "req/s", True)
UNDISTURBED: dict[str, float | str] = {FOREIGN_LOAD: 0.0, STOLEN: 0.0}
SECONDS = Row("cold_seconds", "cold layer", "s", False)


def run_of(row: str, **by_server: list[float | None]) -> Run:
    """A run of that row alone; None is a failure."""
    run = Run(FULL, SERVERS, {"cpu": "a fast one"}, {"mirror": "1.2.3"})
    run.samples[row] = {
        name.replace("_", "-"): [_sample(row, value) for value in them]
        for name, them in by_server.items()
    }
    return run


def _sample(row: str, value: float | None) -> Sample:
    if value is None:
        return Sample(details=UNDISTURBED.copy(), failure="answered\n'500'")
    return Sample({row: value}, UNDISTURBED.copy())


def test_a_ratio_is_the_median_of_those_within_a_round() -> None:
    run = run_of(RATE.key, mirror=[10.0, 200.0, 30.0], zot=[5.0, 50.0, 10.0])
    assert ratio(run, RATE, "mirror", "zot") == 3
    assert ratio(run, RATE, "mirror", "nginx-static") is None


def test_a_round_that_one_of_both_failed_has_no_ratio() -> None:
    run = run_of(RATE.key, mirror=[10.0, 20.0], zot=[None, 5.0])
    assert ratio(run, RATE, "mirror", "zot") == 4
    assert failures(run, RATE, "zot") == ["answered\n'500'"]


def test_the_best_peer_is_another_cache_and_may_be_another_one_in_each_round() -> None:
    everyone: dict[str, list[float | None]] = {
        "mirror": [1.0, 1.0, 1.0],
        "zot": [4.0, 2.0, None],
        "nginx_cache": [3.0, 5.0, None],
        "nginx_static": [0.1, 0.1, 0.1],
    }
    assert values(run_of(SECONDS.key, **everyone), SECONDS, BEST) == [3, 2, None]
    assert values(run_of(RATE.key, **everyone), RATE, BEST) == [4, 5, None]


@pytest.mark.parametrize(
    ("target", "outcome"),
    [
        (at_least(2, "zot"), Outcome.MET),
        (at_least(2.1, "zot"), Outcome.MISSED),
        (at_most(10), Outcome.MET),
        (at_most(9), Outcome.MISSED),
        (at_least(1, "drayage"), Outcome.NOT_MEASURED),
        (at_least(1, "zot", "mirror-2"), Outcome.NOT_MEASURED),
        (at_most(9, subject="zot"), Outcome.MET),
    ],
)
def test_a_target_bounds_a_value_or_a_ratio(target: Target, outcome: Outcome) -> None:
    row = Row(RATE.key, "manifests", "req/s", True, (target,))
    (verdict,) = verdicts(run_of(row.key, mirror=[10.0], zot=[5.0]), [row])
    assert verdict.outcome is outcome


def test_who_failed_in_any_round_misses_the_target() -> None:
    row = Row(RATE.key, "manifests", "req/s", True, (at_least(1),))
    (verdict,) = verdicts(run_of(row.key, mirror=[10.0, None]), [row])
    assert (verdict.outcome, verdict.value) == (Outcome.MISSED, 10)


def test_the_table_names_who_failed_and_says_why_below() -> None:
    run = run_of(RATE.key, mirror=[1000.0, 3000.0], zot=[None, None], nginx_cache=[50.0, None])
    lines = report.markdown(run).splitlines()
    (line,) = [each for each in lines if each.startswith("| warm manifest by tag, ")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:] == ["2,000 (1,000 - 3,000)", "**fails**", "50.0, **fails** 1 of 3", "-"]
    assert "- zot, warm manifest by tag: answered '500'" in lines


def test_the_json_holds_every_sample_beside_the_machine() -> None:
    told = json.loads(report.as_json(run_of(RATE.key, mirror=[1.0, None, 3.0])))
    assert told["machine"] == {"cpu": "a fast one"}
    assert told["medians"][RATE.key] == {"mirror": 2, **dict.fromkeys(SERVERS[1:])}
    assert [each["failure"] for each in told["samples"][RATE.key]["mirror"]].count(None) == 2


def test_the_picture_has_a_panel_for_each_row_and_says_who_fails() -> None:
    run = run_of(RATE.key, mirror=[10.0], zot=[None], nginx_cache=[5.0])
    root = Xml.fromstring(picture.svg(picture.panels(run), "mirror & others"))  # noqa: S314 - ours
    space = "{http://www.w3.org/2000/svg}"
    assert root.get("role") == "img"
    assert root.findtext(f"{space}title") == "mirror & others"
    assert "mirror 10.0, zot fails, nginx-cache 5.00" in (root.findtext(f"{space}desc") or "")
    drawn = root.findall(f"{space}g")
    assert len(drawn) == len(all_rows(FULL))
    bars = list(drawn[0].iter(f"{space}rect"))
    assert [bar.get("class") for bar in bars] == ["ours", "bar"]
    longer, shorter = (float(bar.get("width", "")) for bar in bars)
    assert longer == pytest.approx(2 * shorter, abs=0.2)


@pytest.mark.parametrize(("cores", "said"), [(0.05, False), (1.3, True)])
def test_the_picture_says_when_the_machine_was_busy(cores: float, said: bool) -> None:
    run = run_of(RATE.key, mirror=[10.0])
    run.samples[RATE.key]["mirror"][0].details[FOREIGN_LOAD] = cores
    assert ("others using 1.3 cores" in picture.heading(run)) == said


@pytest.mark.parametrize(("cores", "said"), [(0.05, False), (1.3, True)])
def test_the_report_says_when_the_machine_was_not_all_there(cores: float, said: bool) -> None:
    run = run_of(RATE.key, mirror=[10.0])
    run.samples[RATE.key]["mirror"][0].details[STOLEN] = cores
    assert ("at most 1.30" in report.markdown(run)) == said


def test_medians_and_percentiles() -> None:
    assert middle([None, 4.0, 2.0]) == 3
    assert middle([None]) is None
    assert percentile([float(n) for n in range(1, 101)], 0.99) == 99
    assert percentile([7.0], 0.99) == 7
