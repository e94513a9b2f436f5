"""The OpenAPI document is true: schemathesis asks what it allows and what it does not, and no answer is a surprise.

CASES of the environment sets how many requests; `make fuzz` asks 10,000 and more.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ragkit import Index
from ragkit.apps.serve.jobs import Jobs
from ragkit.apps.serve.limits import ServeLimits
from ragkit.apps.serve.service import Service
from ragkit.testing import HashEncoder
from tests.apps.serve.conftest import served
from tests.conftest import records

schemathesis = pytest.importorskip("schemathesis")

CASES = int(os.environ.get("CASES", "160"))


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with Index.open(tmp_path / "library", model=HashEncoder(dims=16, multi_dims=8, max_tokens=100_000), chunk_tokens=16) as index:
        index.add(records())
        service = Service(
            {"library": index},
            rerankers={"length": lambda query, texts: [len(text) for text in texts]},
            jobs={"library": Jobs(index, "library", tmp_path / "state", limits=ServeLimits(waiting_jobs=1))},
        )
        with served(service) as url:
            yield url


def fuzzed(url: str, cases: int) -> dict[str, int]:
    """Ask so many requests of all operations together; the answers by status. AssertionError tells what was not documented."""
    import hypothesis
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [one.ok() for one in schema.get_all_operations()]
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    told: dict[str, int] = {}
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            share = max(2, cases // (2 * len(operations)))
            settings = hypothesis.settings(
                max_examples=share,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(hypothesis.HealthCheck),
                phases=[hypothesis.Phase.generate],
            )
            try:
                strategy = operation.as_strategy(generation_mode=mode)
            except Exception:  # nothing can be wrong with an operation that takes nothing
                continue

            @hypothesis.given(case=strategy)
            @settings
            def ask(case: Any) -> None:
                answer = case.call()
                told[str(answer.status_code)] = told.get(str(answer.status_code), 0) + 1
                case.validate_response(answer, checks=checks)

            try:
                ask()
            except hypothesis.errors.Unsatisfiable:
                continue
    return told


def test_no_answer_is_a_server_error_or_undocumented(url: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # schemathesis' own, of what it cannot negate
        told = fuzzed(url, CASES)
    assert sum(told.values()) >= CASES // 2
    assert "200" in told
    assert "422" in told
    print(told)
