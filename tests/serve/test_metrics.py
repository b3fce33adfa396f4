"""What is counted of a request, and that dashboard, alerts and docs name metrics that exist."""

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from rematch_ray.index.search import SearchResult
from rematch_ray.serve.backend import Answer, SearchPlan, WriteResult
from rematch_ray.serve.metric_table import METRICS, Metric
from rematch_ray.serve.metrics import Recorder, Written, join
from rematch_ray.serve.observation import Facts, FailedSearch, RequestRecord, Searched

Series = tuple[str, tuple[str, ...]]


class Library:
    """A metrics library of a few lines."""

    def __init__(self) -> None:
        self.values: dict[Series, list[float]] = defaultdict(list)

    def __call__(self, metric: Metric) -> Written:
        def write(value: float, tags: dict[str, str]) -> None:
            assert tuple(tags) == metric.labels
            self.values[metric.name, tuple(tags.values())].append(value)

        return write


def answer(**fields: object) -> Answer:
    stages = [{"name": "coarse", "in": 9, "out": 5, "ms": 2.0}]
    result = SearchResult([], "8x16", 100, stages, 100, 500, "float", False, "generation-000003")
    return Answer(result, dot_products=4096, queue_ms=5.0, search_ms=20.0, **fields)  # type: ignore[arg-type]


def record(*searches: Searched, status: int = 200, code: str = "") -> RequestRecord:
    facts = Facts(caller="shop", code=code, encode_s=0.004, searches=list(searches))
    return RequestRecord("/v1/search", status, 0.03, "id", "POST", facts)


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def recorder(library: Library) -> Recorder:
    return Recorder(library, flush_s=0)


def test_a_search_is_counted_with_rung_reason_and_cost(
    recorder: Recorder, library: Library
) -> None:
    lowered = Searched.of(SearchPlan(), answer(degraded=("load",)))
    recorder(record(lowered, Searched.of(SearchPlan(budget="8x16"), answer())))
    recorder.flush()
    values = library.values
    assert values["rematch_requests_total", ("/v1/search", "200")] == [1]
    assert values["rematch_searches_total", ("8x16", "load", "false")] == [1]
    assert values["rematch_searches_total", ("8x16", "explicit", "false")] == [1]
    assert values["rematch_degraded_total", ("load",)] == [1]
    assert values["rematch_dot_products_total", ("shop",)] == [8192]
    assert values["rematch_stage_seconds", ("queue",)] == [0.005, 0.005]
    assert values["rematch_stage_seconds", ("coarse",)] == [0.002, 0.002]
    assert values["rematch_stage_seconds", ("encode",)] == [0.004]


@pytest.mark.parametrize(
    ("plan", "degraded", "reason"),
    [
        (SearchPlan(), (), "auto"),
        (SearchPlan(budget="auto"), ("deadline", "load"), "load"),
        (SearchPlan(), ("deadline",), "deadline"),
        (SearchPlan(), ("shard_missing",), "auto"),
        (SearchPlan(target_recall=0.9), (), "recall"),
        (SearchPlan(budget="1x1"), ("shard_missing",), "explicit"),
    ],
)
def test_the_reason_of_a_budget_is_who_chose_it(
    plan: SearchPlan, degraded: tuple[str, ...], reason: str
) -> None:
    assert Searched.of(plan, answer(degraded=degraded)).reason == reason


def test_refusals_are_counted_by_code_and_mistakes_are_not(
    recorder: Recorder, library: Library
) -> None:
    recorder(record(status=429, code="quota_exceeded"))
    recorder(record(status=503, code="overloaded"))
    recorder(record(status=413, code="body_too_large"))
    recorder(record(status=400, code="unknown_budget"))
    recorder.flush()
    refused = {k[1][0]: v for k, v in library.values.items() if k[0] == "rematch_refused_total"}
    assert refused == {"quota_exceeded": [1], "overloaded": [1], "body_too_large": [1]}


def test_searches_that_fail_in_a_batch_are_counted_beside_its_200(
    recorder: Recorder, library: Library
) -> None:
    batch = record(Searched.of(SearchPlan(), answer()))
    batch.facts.failed += [
        FailedSearch(503, "overloaded"),
        FailedSearch(503, "overloaded"),
        FailedSearch(429, "quota_exceeded"),
        FailedSearch(500, "internal_error"),
        FailedSearch(422, "invalid_field"),
    ]
    recorder(batch)
    recorder(record(status=503, code="overloaded"))
    recorder.flush()
    counted: dict[str, dict[str, float]] = defaultdict(dict)
    for (name, labels), values in library.values.items():
        counted[name]["".join(labels[-1:])] = sum(values)
    assert counted["rematch_requests_total"] == {"200": 1, "503": 1}
    assert counted["rematch_failed_searches_total"] == {"503": 2, "429": 1, "500": 1, "422": 1}
    assert counted["rematch_refused_total"] == {"overloaded": 3, "quota_exceeded": 1}


def test_counters_are_added_up_and_written_once(recorder: Recorder, library: Library) -> None:
    for _ in range(100):
        recorder(record())
    assert ("rematch_requests_total", ("/v1/search", "200")) not in library.values
    recorder.flush()
    recorder.flush()
    assert library.values["rematch_requests_total", ("/v1/search", "200")] == [100]


def test_every_measurement_is_written_and_of_a_state_the_last(
    recorder: Recorder, library: Library
) -> None:
    for size in (1, 8):
        recorder.encoded(size, 0.01 * size, "query")
        recorder.load(size, 0.0, 0.0, 0.002)
    assert not library.values
    recorder.flush()
    recorder.flush()
    assert library.values["rematch_batch_size", ("encode",)] == [1, 8]
    assert library.values["rematch_encode_seconds", ("query",)] == [0.01, 0.08]
    assert library.values["rematch_ceiling_level", ()] == [8]


def test_the_state_of_index_controller_writer_and_drift_is_shown(
    recorder: Recorder, library: Library
) -> None:
    recorder.index(0, {"documents": 100, "live": 75, "generation": "generation-000012"})
    recorder.load(2, 0.1, 0.03, 0.002)
    recorder.wrote(WriteResult(added=3, deleted=1))
    recorder.checked("4x8", 0.97)
    recorder.encoded(8, 0.02, "query")
    recorder.flush()
    found = {name: values[-1] for (name, _), values in library.values.items()}
    assert found["rematch_documents"] == 75
    assert found["rematch_tombstone_ratio"] == 0.25
    assert found["rematch_generation"] == 12
    assert found["rematch_ceiling_level"] == 2
    assert found["rematch_recall"] == 0.97
    assert library.values["rematch_documents_written_total", ("added",)] == [3]


def test_a_label_may_hold_what_ends_a_line_elsewhere() -> None:
    sample = 'rematch_a{who="a\u2028b\u0085c"} 1'
    heading = "# TYPE rematch_a counter"
    assert join([f"# TYPE ray_rematch_a counter\nray_{sample}\n"]) == [heading, sample]


def test_every_metric_of_the_table_is_written(recorder: Recorder, library: Library) -> None:
    searched = Searched.of(SearchPlan(), answer(degraded=("load",)))
    batch = record(searched, status=503, code="overloaded")
    batch.facts.failed.append(FailedSearch(504, "deadline_exceeded"))
    recorder(batch)
    recorder.index(0, {"documents": 1, "live": 1, "generation": "generation-000001"})
    recorder.load(0, 0.0, 0.0, 0.002)
    recorder.wrote(WriteResult(added=1))
    recorder.committed("merge", 0.1, 3)
    recorder.swapped(done=True)
    recorder.checked("4x8", 1.0)
    recorder.encoded(1, 0.01, "query")
    recorder.flush()
    assert {name for name, _ in library.values} == {metric.name for metric in METRICS}


# names that Serve exports beside ours, as Ray's own dashboard uses them
_SERVE = {"serve_num_ongoing_http_requests", "serve_deployment_replica_healthy"}


def exported() -> set[str]:
    """Every name that a query may use."""
    names = set(_SERVE)
    for metric in METRICS:
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        names |= {metric.name + suffix for suffix in suffixes}
    return names


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\bray_((?:rematch|serve)_\w+)", expression))


def test_the_dashboard_shows_every_metric_and_no_other(repository: Path) -> None:
    dashboard = json.loads((repository / "cluster" / "grafana" / "rematch.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    used: set[str] = set()
    for panel in panels:
        assert panel["title"] and panel["targets"], panel
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert target["expr"].count("(") == target["expr"].count(")")
            assert names_in(target["expr"]), target["expr"]
            used |= names_in(target["expr"])
    assert used <= exported()
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    assert {metric.name for metric in METRICS} <= shown


def test_panels_do_not_overlap_and_have_their_own_ids(repository: Path) -> None:
    dashboard = json.loads((repository / "cluster" / "grafana" / "rematch.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken = np.zeros((200, 24), bool)
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        area = taken[grid["y"] : grid["y"] + grid["h"], grid["x"] : grid["x"] + grid["w"]]
        assert grid["x"] + grid["w"] <= 24
        assert not area.any(), panel["title"]
        area[:] = True
    assert dashboard["templating"]["list"][0]["name"] == "datasource"


def test_alerts_name_metrics_that_exist(repository: Path) -> None:
    folder = repository / "cluster" / "prometheus"
    rules = yaml.safe_load((folder / "alerts.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len(alerts) >= 5
    for alert in alerts:
        assert names_in(alert["expr"]) <= exported()
        assert names_in(alert["expr"])
        assert alert["annotations"]["summary"]
    scrape = yaml.safe_load((folder / "prometheus.yml").read_text())
    assert scrape["rule_files"] == ["alerts.yml"]
    assert scrape["scrape_configs"][0]["job_name"] == "ray"


def test_the_docs_list_every_metric_as_it_is_and_no_other(repository: Path) -> None:
    text = (repository / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| `(rematch_\w+)` \| (\w+) \| (.+?) \| (.+) \|$", text, re.M)
    assert rows == [(m.name, m.kind, ", ".join(m.labels) or "-", m.help) for m in METRICS]
