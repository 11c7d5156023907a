"""docs/metrics.md and the rules speak of the metrics that there are."""

import re
from pathlib import Path

import yaml
from prometheus_client import Counter, Gauge, Histogram

from service.metrics import Metrics

ROOT = Path(__file__).parents[2]


def families() -> dict[str, tuple[str, str]]:
    """Type and description by the name that Prometheus sees."""
    made = [x for x in vars(Metrics()).values() if isinstance(x, Counter | Gauge | Histogram)]
    return {
        one._name + ("_total" if isinstance(one, Counter) else ""): (one._type, one._documentation)
        for one in made
    }


def test_the_page_describes_every_metric_and_no_other() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| [^|]*\| (.*) \|$",
        (ROOT / "docs" / "metrics.md").read_text(),
        re.MULTILINE,
    )
    assert {name: (kind, text) for name, kind, text in rows} == families()


def test_every_alert_asks_for_metrics_that_exist() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())
    expressions = " ".join(rule["expr"] for rule in rules["groups"][0]["rules"])
    asked = set(re.findall(r"sumzero_\w+", expressions))
    assert asked
    assert {name.removesuffix("_bucket") for name in asked} <= set(families())
