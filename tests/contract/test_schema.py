"""Requests made up from the schema, good and bad, to every documented operation of a running server."""

from __future__ import annotations

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks

from tests.applications import Live

schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]

some = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def try_out(operation: APIOperation, mode: GenerationMode, live: Live) -> str | None:
    """What the server did wrong, with the request that shows it."""

    @some
    @given(case=operation.as_strategy(generation_mode=mode))
    def request(case: Case) -> None:
        case.call_and_validate(base_url=live.url, headers=live.headers, checks=CHECKS, timeout=30)

    try:
        request()
    except FailureGroup as failures:
        return str(failures)
    except Unsatisfiable:  # it takes nothing that could be wrong
        assert mode is GenerationMode.NEGATIVE
    return None


@pytest.mark.fault_case(45)
@pytest.mark.parametrize("mode", GenerationMode)
def test_no_request_breaks_the_server_or_its_promises(app: FastAPI, live: Live, mode: GenerationMode) -> None:
    """No status 5xx, and no status, media type or body that /openapi.json does not describe."""
    schema = schemathesis.openapi.from_dict(app.openapi())
    operations = [found.ok() for found in schema.get_all_operations()]
    wrong = [fault for operation in operations if (fault := try_out(operation, mode, live))]
    assert len(operations) > 40
    assert wrong == [], "\n".join(wrong)
