"""Problems of an address that the service is to send something to, or to fetch a file from."""

from __future__ import annotations

from service.problems.document import Problem


class DestinationRefused(Problem):
    status, code, title = 422, "destination-refused", "The service sends no request to that address"


class DestinationUnresolved(Problem):
    status, code, title = 422, "destination-unresolved", "The name of the host cannot be resolved"


class SourceNotAllowed(Problem):
    status, code, title = 422, "source-not-allowed", "The service downloads nothing from there"


class SourceFailed(Problem):
    status, code, title = 502, "source-failed", "The source did not answer with the file"


class SourceUnreachable(SourceFailed):
    code, title = "source-unreachable", "The source cannot be reached, or the connection broke off"


class SourceTimeout(SourceFailed):
    code, title = "source-timeout", "The source took too long"


class SourceNotFound(SourceFailed):
    code, title = "source-not-found", "The source has no such file"


class SourceForbidden(SourceFailed):
    code, title = "source-forbidden", "The source does not let the service read the file"


class RedirectNotAllowed(SourceFailed):
    code, title = "redirect-not-allowed", "The source redirects to where the service downloads nothing from"
