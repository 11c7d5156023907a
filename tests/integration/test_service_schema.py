"""schemathesis against the running service: no request that the schema allows, or nearly, is a 5xx.

``SCHEMA_CASES`` sets the number of cases per operation; the default keeps the test short.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.checkpoints import tiny_checkpoint
from tests.integration.test_service_process import Service, running

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

CASES = int(os.environ.get("SCHEMA_CASES", "40"))
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
MODES = list(schemathesis.GenerationMode)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    path = tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "qwen2")
    with running("--model", f"tiny={path}") as service:
        yield service


def test_every_operation_answers_as_its_schema_says(service: Service) -> None:
    """Valid and invalid requests alike; what was sent is printed where an answer is wrong."""
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    answered: dict[str, int] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        raw = operation.definition.raw
        # Nothing to get wrong where nothing is sent.
        for mode in MODES if {"requestBody", "parameters"} & set(raw) else MODES[:1]:
            _drive(operation, mode, answered)
    assert len(answered) >= 11, answered
    assert sum(answered.values()) >= CASES * 6, answered
    print(f"{sum(answered.values())} cases:", answered)
    assert not [line for line in service.lines if '"level": "error"' in line]
    assert Path(f"/proc/{service.process.pid}").exists()


def _drive(operation: object, mode: object, answered: dict[str, int]) -> None:
    strategy: st.SearchStrategy[schemathesis.Case] = operation.as_strategy(  # type: ignore[attr-defined]
        generation_mode=mode
    )

    @settings(
        max_examples=CASES // len(MODES),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(case=strategy)
    def ask(case: schemathesis.Case) -> None:
        answered[operation.label] = answered.get(operation.label, 0) + 1  # type: ignore[attr-defined]
        response = case.call(timeout=60)
        hurried = isinstance(case.body, dict) and case.body.get("timeout_ms") is not None
        # 504 is what a request gets that sets itself a deadline and misses it.
        late = response.status_code == 504 and hurried
        case.validate_response(response, checks=CHECKS[1:] if late else CHECKS)

    ask()
