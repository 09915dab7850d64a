"""One try at one scan, from the claim to the write that ends it.

Every way out is one fenced write, so nothing that a lost attempt does can be seen; a way out without a
write (a killed process, a lost database) is what the reaper is for.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.orm import Session

from service import publication
from service.db import attempts, recovery
from service.db.attempts import Claim
from service.domain.sources import with_source
from service.publication import Publication
from service.reports.signing import Signer
from service.settings import Settings
from service.storage.blobs import BlobMissingError, BlobStore
from worker import artifacts
from worker.lease import CancelledError, DrainingError, Lease, LeaseLostError
from worker.provenance import find_base
from worker.sandbox import Job, JobDiedError, JobError, JobRefusedError, run_job

_PROGRESS_SECONDS = 1.0


class Attempt:
    """Runs the job of a claimed scan in the sandbox and settles the scan's row.

    The signer stays in this process: the job's child, which reads the stranger's file, never has it.
    """

    def __init__(
        self, claim: Claim, lease: Lease, settings: Settings, blobs: BlobStore, signer: Signer | None
    ) -> None:
        self._claim = claim
        self._lease = lease
        self._settings = settings
        self._blobs = blobs
        self._signer = signer
        self._measures: list[str] = []
        self._shown = ("", 0.0)
        self._log = structlog.get_logger(__name__).bind(scan_id=claim.scan_id, attempt=claim.attempt)

    def run(self) -> None:
        """Run to the end, whatever it is; raises nothing that the outcome of a scan explains."""
        started = time.monotonic()
        try:
            outcome = self._outcome()
        except LeaseLostError:
            outcome = "lease lost, nothing published"
        self._log.info("attempt ended", outcome=outcome, seconds=round(time.monotonic() - started, 1))

    def _outcome(self) -> str:
        try:
            return self._scan()
        except CancelledError:
            return self._settle("cancelled", attempts.finish_cancel)
        except DrainingError:
            return self._settle("given back", attempts.release)
        except JobDiedError as error:
            self._log.warning("job died", detail=error.detail)
            return self._settle("worker lost", recovery.lose, max_attempts=self._settings.max_attempts)
        except JobRefusedError as error:
            return self._refuse(error)
        except JobError as error:
            return self._fail(error.code, error.detail)
        except BlobMissingError:
            return self._fail("input-missing", "The submitted file is no longer in the store.")
        except OSError as error:
            self._log.exception("storage trouble")
            reason = "the disk is full" if error.errno == errno.ENOSPC else type(error).__name__
            return self._fail("storage", f"The worker could not read or write its files: {reason}.")

    def _settle(self, outcome: str, write: Callable[..., bool], *arguments: Any, **options: Any) -> str:
        scan_id, attempt = self._claim.scan_id, self._claim.attempt
        self._lease.write(lambda session: write(session, scan_id, attempt, *arguments, **options))
        return outcome

    def _fail(self, code: str, detail: str) -> str:
        return self._settle(f"failed: {code}", attempts.fail, {"code": code, "detail": detail})

    def _refuse(self, error: JobRefusedError) -> str:
        self._publish(artifacts.refusal(self._claim, error.code, error.detail), None)
        return f"refused: {error.code}"

    def _scan(self) -> str:
        with artifacts.scratch_folder(self._settings, self._claim) as scratch:
            job = self._job(scratch)
            run_job(job, on_message=self._on_message, check=self._lease.check)
            report = artifacts.read_report(job.out, self._claim)
            self._settle("renewed", attempts.renew_lease, self._settings.lease_seconds)
            report = {**report, "static": self._claim.static or None, "sandbox": self._measures}
            return self._publish(report, job.out)

    def _job(self, scratch: Path) -> Job:
        claim, settings = self._claim, self._settings
        checkpoint = self._blobs.fetch(claim.blob_sha256, scratch)
        base = find_base(self._lease.read, claim, checkpoint, settings, self._blobs, scratch)
        return artifacts.prepare(claim, settings, checkpoint, base, scratch)

    def _publish(self, report: dict[str, Any], out: Path | None) -> str:
        """Store and sign the result, then show it. out: the job's folder, if it left more than a report."""
        report = with_source(report, self._claim.source)

        def make() -> Publication:
            files = [] if out is None else artifacts.store(out, self._claim, self._blobs)
            return publication.publication(self._claim.scan_id, report, files, self._blobs, self._signer)

        made = make()

        def show(session: Session, scan_id: str, attempt: int) -> bool:
            held = publication.held(session, made, self._blobs, make)
            return attempts.publish(
                session, scan_id, attempt, report["verdict"], report, held.files, signed_by=held.signed_by
            )

        return self._settle(report["verdict"], show)

    def _on_message(self, kind: str, content: Any) -> None:
        if kind == "confined":
            self._measures = content
            return
        stage, now = content["stage"], time.monotonic()
        if stage == self._shown[0] and now - self._shown[1] < _PROGRESS_SECONDS:
            return
        self._shown = (stage, now)
        fraction = min(max(content["done"] / max(content["total"], 1), 0.0), 1.0)
        self._settle("progress", attempts.record_progress, stage, fraction, content["message"])
