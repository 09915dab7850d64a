"""Exit status 0 if the API of this container answers `/healthz`."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

URL = "http://127.0.0.1:8000/healthz"


def healthy(url: str) -> bool:
    """Whether `url` answers 200 within three seconds."""
    try:
        with urllib.request.urlopen(url, timeout=3) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(0 if healthy(URL) else 1)
