"""Storage that is away, or changes while it is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
from obstore.store import S3Store

from service.storage import intake
from service.storage.blobs import BucketBlobs
from service.storage.partial import PartialFiles


def test_a_bucket_that_is_away_fails_as_a_folder_would(tmp_path: Path) -> None:
    """The sweep and the workers go on after an OSError, and end at any other."""
    nowhere = S3Store(
        "bucket",
        endpoint="http://127.0.0.1:9",
        access_key_id="x",
        secret_access_key="x",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    blobs, sha256 = BucketBlobs(nowhere), "0" * 64
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with pytest.raises(OSError, match="bucket"):
        blobs.exists(sha256)
    with pytest.raises(OSError, match="bucket"):
        blobs.put(file)
    with pytest.raises(OSError, match="bucket"):
        list(blobs.older_than(0))
    with pytest.raises(OSError, match="bucket"):
        blobs.delete(sha256)


def test_files_that_vanish_while_they_are_listed_are_no_leftovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "old").write_bytes(b"")
    assert PartialFiles(tmp_path).older_than(2**40) == ["old"]
    monkeypatch.setattr(intake, "_PREFIX", "")
    assert intake.abandoned(tmp_path, 2**40) == [tmp_path / "old"]
