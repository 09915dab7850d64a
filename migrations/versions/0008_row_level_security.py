"""Row-level security"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"

TENANT = "current_setting('sauscan.tenant', true)"

OWNED = {
    "tenants": f"id = {TENANT}",
    **dict.fromkeys(
        (
            "blobs",
            "uploads",
            "scans",
            "idempotency_keys",
            "policies",
            "trusted_references",
            "webhooks",
            "webhook_deliveries",
            "audit_log",
        ),
        f"tenant_id = {TENANT}",
    ),
    # A caller who has no tenant yet sees the one key whose token it can show.
    "api_keys": f"tenant_id = {TENANT} OR token_sha256 = current_setting('sauscan.token', true)",
    # Rows of a row: the policy of the parent applies inside.
    "scan_events": "EXISTS (SELECT FROM scans WHERE scans.id = scan_id)",
    "artifacts": "EXISTS (SELECT FROM scans WHERE scans.id = scan_id)",
    "webhook_tries": "EXISTS (SELECT FROM webhook_deliveries AS d WHERE d.id = delivery_id)",
    "trusted_tensors": "EXISTS (SELECT FROM trusted_references AS r WHERE r.id = reference_id)",
}
"""Which rows of each table are the present tenant's."""

GRANTS = (
    "SELECT ON tenants",
    "SELECT, INSERT, UPDATE ON api_keys",
    "SELECT, INSERT ON audit_log, policies, idempotency_keys",
    "SELECT, INSERT, UPDATE, DELETE ON blobs, uploads, scans, scan_events, artifacts",
    "SELECT, INSERT, UPDATE, DELETE ON webhooks, webhook_deliveries, webhook_tries",
    "SELECT, INSERT, DELETE ON trusted_references, trusted_tensors",
    "INSERT, SELECT (id, created_at) ON outbox",
    "USAGE ON SEQUENCE outbox_id_seq, scan_events_seq_seq",
    "SELECT ON queue",
    "EXECUTE ON FUNCTION still_named(text[])",
)

ROLE = """
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'sauscan_api') THEN
        CREATE ROLE sauscan_api NOLOGIN;
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;  -- another database was quicker
END
$$;
"""

# What the API must know across tenants, and no more: how long the queue is, which bytes somebody needs.
ACROSS_TENANTS = """
CREATE VIEW queue AS
    SELECT count(*) AS depth,
           coalesce(extract(epoch FROM now() - min(queued_at)), 0)::double precision AS seconds
    FROM scans WHERE state = 'queued';
CREATE FUNCTION still_named(hashes text[]) RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
        SELECT sha256 FROM blobs WHERE sha256 = ANY (hashes)
        UNION SELECT sha256 FROM artifacts WHERE sha256 = ANY (hashes)
        UNION SELECT blob_sha256 FROM scans
            WHERE blob_sha256 = ANY (hashes) AND state IN ('created', 'uploading', 'queued', 'running')
    $$;
REVOKE EXECUTE ON FUNCTION still_named(text[]) FROM PUBLIC;
"""


def upgrade() -> None:
    """The owner of the tables, as whom workers and relay act, is not bound by the policies."""
    op.execute(ROLE)
    op.execute(ACROSS_TENANTS)
    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    op.execute(f"GRANT USAGE ON SCHEMA {schema} TO sauscan_api")
    for grant in GRANTS:
        op.execute(f"GRANT {grant} TO sauscan_api")
    for table, rows in OWNED.items():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY tenant ON {table} TO sauscan_api USING ({rows}) WITH CHECK ({rows})")
    _let_the_owner_act_as_it()


def _let_the_owner_act_as_it() -> None:
    """A superuser may anyway; another owner must be a member."""
    may = op.get_bind().scalar(sa.text("SELECT pg_has_role(current_user, 'sauscan_api', 'SET')"))
    if not may:
        op.execute("GRANT sauscan_api TO CURRENT_USER WITH SET TRUE")


def downgrade() -> None:
    """The role stays: it belongs to the whole server, and other databases may use it."""
    for table in OWNED:
        op.execute(f"DROP POLICY tenant ON {table}")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    op.execute("DROP OWNED BY sauscan_api")
    op.execute("DROP FUNCTION still_named(text[])")
    op.execute("DROP VIEW queue")
