"""Every setting of the service, read from the environment (prefix `SAUSCAN_`) or passed in.

Units are in the names. The defaults suit one machine with an embedded PostgreSQL and Valkey.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pydantic import Field, Secret
from pydantic_settings import BaseSettings, SettingsConfigDict

GIB = 1024**3


class Settings(BaseSettings):
    """One immutable bag of settings, shared by API, relay, reaper and worker."""

    model_config = SettingsConfigDict(
        env_prefix="SAUSCAN_", env_ignore_empty=True, frozen=True, extra="ignore"
    )

    database_url: str = "postgresql://localhost/sauscan"
    redis_url: str = "redis://localhost:6379/0"
    data_dir: Path = Path("sauscan-data")
    blob_url: str | None = Field(
        None, description="object store of the blobs, as s3://bucket/prefix; a folder if None"
    )
    blob_config: Secret[dict[str, str]] | None = Field(
        None,
        description="credentials and endpoint of `blob_url`, as JSON: aws_endpoint, aws_access_key_id, …",
    )

    signing_key: Path | None = Field(
        None, description="PEM file of the private EC key that signs results; None signs nothing"
    )

    clip_path: Path | None = Field(
        None, description="folder of a CLIP model: the independent witness of every scan"
    )
    device: str = "auto"

    max_upload_bytes: int = 16 * GIB
    min_free_bytes: int = GIB
    upload_idle_seconds: float = Field(
        60.0, description="an upload that sends nothing for so long is dropped"
    )

    upload_lifetime_seconds: float = Field(
        86_400.0, description="a resumable upload that nobody touches for so long is removed"
    )

    lease_seconds: int = 90
    heartbeat_seconds: int = 15
    max_attempts: int = Field(2, description="attempts that may end in a lost worker before the scan fails")
    stale_queued_seconds: int = Field(
        300, description="a queued scan nobody claimed for so long is announced again"
    )
    reaper_seconds: float = 10.0
    relay_seconds: float = 1.0
    scan_time_limit_seconds: int = 6 * 3600
    worker_grace_seconds: float = Field(
        20.0, description="a worker told to stop may finish its scan for so long, then gives it back"
    )
    cancel_poll_seconds: float = 2.0
    engine: str = Field(
        "worker.engine.pipeline:run",
        description="what a job runs: module:function(request, out, on_progress)",
    )
    job_memory_bytes: int | None = Field(
        None, description="address-space limit of the job's child; None sets none"
    )

    egress_allowed_hosts: tuple[str, ...] = Field(
        (),
        description="hosts that webhooks and downloads may reach although they are private, and without TLS; "
        'a JSON list such as ["hooks.intranet"]',
    )

    source_allowed_hosts: tuple[str, ...] = Field(
        (),
        description="hosts that checkpoints may be downloaded from, redirects included; a leading dot takes "
        'in the hosts below a name; a JSON list such as ["models.intranet", ".hf.co"]',
    )
    huggingface_url: str | None = Field(
        None, description="base URL of Hugging Face or of a mirror of it; None fetches nothing by its ids"
    )
    download_seconds: float = Field(3600.0, description="a checkpoint must have been downloaded by then")

    webhook_timeout_seconds: float = Field(15.0, description="a receiver must have answered by then")
    webhook_first_retry_seconds: float = Field(
        20.0, description="wait after the first failed try; it grows fourfold, to 12 hours, over 8 tries"
    )
    webhook_log_days: float = Field(30.0, description="messages that ended are kept for so long")

    requests_per_minute: int = Field(600, description="requests of one key")
    max_active_scans: int | None = Field(
        1000, description="scans of a tenant that wait or run; None sets no bound"
    )
    max_stored_bytes: int | None = Field(None, description="bytes that a tenant keeps; None sets no bound")

    retention_report_days: float | None = Field(
        None, description="a scan is deleted so long after its end, with all that it made; None keeps it"
    )
    retention_model_days: float | None = Field(
        None, description="a cleaned model is removed so long after the end of its scan; None keeps it"
    )
    retention_upload_days: float | None = Field(
        None, description="an upload that no scan used for so long is removed; None keeps it"
    )
    sweep_seconds: float = Field(3600.0, description="time between two looks for what has outlived its time")
    orphan_seconds: float = Field(
        86_400.0, description="stored bytes and scratch files that no row names are removed at this age"
    )

    event_poll_seconds: float = 0.5
    event_heartbeat_seconds: float = 15.0
    event_connection_seconds: float = Field(
        600.0, description="an event stream is closed after so long; clients resume"
    )
    max_wait_seconds: int = Field(30, description="upper bound of `Prefer: wait=N`")

    database_pool_size: int = 10
    log_level: str = "INFO"
    log_json: bool = True

    @property
    def scratch_dir(self) -> Path:
        """Folder of partial uploads, on the file system of the blob folder, so that a rename publishes."""
        return self.data_dir / "scratch"

    @property
    def upload_dir(self) -> Path:
        """Folder of unfinished resumable uploads; replicas that share uploads share it."""
        return self.scratch_dir / "uploads"

    @property
    def blob_dir(self) -> Path:
        """Root of the content-addressed folder store, unused when `blob_url` is set."""
        return self.data_dir / "blobs"


@lru_cache
def get_settings() -> Settings:
    """The process's settings, read from the environment once."""
    return Settings()
