"""The tables. Every row that belongs to somebody carries `tenant_id`, directly or through its scan.

One module a subject; import the tables from here.
"""

from __future__ import annotations

from service.db.models.base import Base
from service.db.models.files import Blob, TrustedReference, TrustedTensor, Upload
from service.db.models.scans import Artifact, IdempotencyKey, Outbox, Scan, ScanEvent
from service.db.models.tenants import ApiKey, AuditEntry, PolicyVersion, Tenant
from service.db.models.webhooks import Webhook, WebhookDelivery, WebhookTry

__all__ = [
    "ApiKey",
    "Artifact",
    "AuditEntry",
    "Base",
    "Blob",
    "IdempotencyKey",
    "Outbox",
    "PolicyVersion",
    "Scan",
    "ScanEvent",
    "Tenant",
    "TrustedReference",
    "TrustedTensor",
    "Upload",
    "Webhook",
    "WebhookDelivery",
    "WebhookTry",
]
