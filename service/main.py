"""The HTTP application: `uvicorn service.main:create_app --factory`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api import (
    artifacts,
    audit,
    blobs,
    errors,
    events,
    health,
    keys,
    logs,
    policies,
    references,
    scans,
    signatures,
    submissions,
    uploads,
    webhooks,
)
from service.api.deps import Parts
from service.api.schemas.keys import NewKeyBody
from service.api.schemas.references import NewReference
from service.api.schemas.submissions import MultipartSubmission, SubmissionBody
from service.api.schemas.webhooks import NewWebhookBody
from service.db.session import Database
from service.domain.policy import Policy
from service.problems import ProblemDocument
from service.settings import Settings, get_settings
from service.storage.blobs import open_blobs
from service.web import pages

DESCRIPTION = """
Submit a text-to-image checkpoint; get a verdict with the triggers it hides, a cleaned model, and proof that
the cleaning worked. A scan is a resource: submit, poll (or follow its events), read the report.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """A whole application. Connections are opened when the first request needs them."""
    settings = settings or get_settings()
    logs.configure(settings)
    settings.scratch_dir.mkdir(parents=True, exist_ok=True)
    parts = Parts(
        settings=settings,
        database=Database(settings.database_url, pool_size=settings.database_pool_size).of_tenants(),
        blobs=open_blobs(settings),
    )
    _ = parts.signer  # a key that cannot be used is found out now, and not by the first scan that ends
    app = FastAPI(
        title="sauscan",
        version=parts.engine_version,
        description=DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,  # the dashboard has its own, which loads nothing from elsewhere
        redoc_url=None,
    )
    app.state.parts = parts
    errors.install(app)
    routed = (
        submissions, uploads, blobs, scans, events, artifacts, signatures, references, policies, webhooks,
        keys, audit, health,
    )  # fmt: skip
    for module in routed:
        app.include_router(module.router)
    pages.mount(app)
    health.install_metrics(app, parts)
    app.add_middleware(logs.AccessLog)
    app.add_middleware(CorrelationIdMiddleware)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


TOLD_BY_HAND = (
    ProblemDocument,
    SubmissionBody,
    MultipartSubmission,
    NewReference,
    NewKeyBody,
    NewWebhookBody,
    Policy,
)
"""Models that only hand-written parts of the schema refer to."""


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    parts: Parts = app.state.parts
    with parts.shutdown.watching_signals():
        yield
    parts.database.dispose()


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The schema, with TOLD_BY_HAND."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        models = schema.setdefault("components", {}).setdefault("schemas", {})
        for model in TOLD_BY_HAND:
            definition = model.model_json_schema(ref_template="#/components/schemas/{model}")
            models |= definition.pop("$defs", {})
            models[model.__name__] = definition
        app.openapi_schema = schema
    return app.openapi_schema
