"""Which sources the operator lets the service download from; which addresses may be reached is `egress`'s."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote, urlsplit

from service.domain.sources import HuggingFaceSource, Source, UrlSource
from service.problems import SourceNotAllowed
from service.settings import Settings


def check_allowed(settings: Settings, source: Source) -> None:
    """Raise SourceNotAllowed, naming the setting, unless the service downloads from there."""
    if isinstance(source, HuggingFaceSource):
        if settings.huggingface_url is None:
            raise SourceNotAllowed(
                "This service fetches nothing from Hugging Face. Have its operator name it, or a mirror, in "
                "SAUSCAN_HUGGINGFACE_URL, or upload the file."
            )
        return
    host = _host(source.url)
    if not _listed(host, settings.source_allowed_hosts):
        raise SourceNotAllowed(
            f"This service downloads nothing from {host or 'there'}. Have its operator add the host to "
            "SAUSCAN_SOURCE_ALLOWED_HOSTS, or upload the file."
        )


def host_allowed(settings: Settings, source: Source, host: str) -> bool:
    """Whether a redirect from the source may lead to that host; a mirror may redirect to itself."""
    mirror = settings.huggingface_url
    if isinstance(source, HuggingFaceSource) and mirror is not None and host == _host(mirror):
        return True
    return _listed(host, settings.source_allowed_hosts)


def file_url(mirror: str | None, source: Source, commit: str | None) -> str:
    """Where the file is; commit: of a Hugging Face source, what its revision meant."""
    if isinstance(source, UrlSource):
        return source.url
    return f"{_base(mirror)}/{source.huggingface}/resolve/{commit}/{quote(source.file)}"


def revision_url(mirror: str | None, source: HuggingFaceSource) -> str:
    """Where Hugging Face says which commit the revision is."""
    return f"{_base(mirror)}/api/models/{source.huggingface}/revision/{quote(source.revision, safe='')}"


def _base(mirror: str | None) -> str:
    return (mirror or "").rstrip("/")


def _host(url: str) -> str:
    """The host in lower case; "" for what is no address."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _listed(host: str, allowed: Iterable[str]) -> bool:
    names = [name.lower() for name in allowed]
    return host in names or any(name.startswith(".") and host.endswith(name) for name in names)
