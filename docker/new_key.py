"""Makes an API key and prints it, once: `docker compose run --rm api python docker/new_key.py NAME`."""

from __future__ import annotations

import sys

from service.db.session import Database
from service.db.tenants import create_key, ensure_tenant
from service.settings import get_settings


def main() -> None:
    """Write the new key's token to standard output; only its hash is stored."""
    name = sys.argv[1] if len(sys.argv) > 1 else "default"
    database = Database(get_settings().database_url, pool_size=1)
    with database.transaction() as session:
        token = create_key(session, ensure_tenant(session, "default"), name=name)
    database.dispose()
    sys.stdout.write(f"{token}\n")


if __name__ == "__main__":
    main()
