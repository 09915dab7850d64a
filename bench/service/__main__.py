"""`python -m bench.service [PART...]`: measure some parts, or all, and print them as JSON."""

from __future__ import annotations

import argparse
import json

from bench.service.parts import PARTS


def main() -> None:
    """Measure and print; `python -m bench service.PART` keeps the figures too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS), default=list(PARTS))
    for name in parser.parse_args().parts:
        if name not in PARTS:
            parser.error(f"{name} is none of {', '.join(PARTS)}")
        print(json.dumps({name: PARTS[name]()}, indent=2), flush=True)


if __name__ == "__main__":
    main()
