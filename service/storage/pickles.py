"""What a pickle would import, read off its opcodes; nothing is ever unpickled here.

Strict: an import that is not on the allow-list counts as an attack. So does a stream that hides its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from picklescan.scanner import SafetyLevel, ScanResult, scan_bytes, scan_pickle_bytes

PICKLE_MAGIC = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


@dataclass(frozen=True)
class PickleVerdict:
    """imports: dangerous or unknown ones as `module.name`, sorted. damaged: the stream could not be read."""

    imports: tuple[str, ...]
    damaged: bool

    @property
    def blocked(self) -> bool:
        """True if the file must not be loaded."""
        return bool(self.imports) or self.damaged


def scan_checkpoint(file: BinaryIO, name: str) -> PickleVerdict:
    """Judge a whole file as `torch.load` would read it: new zip format, old format, or plain pickle."""
    try:
        result = scan_bytes(file, name, ".pt", strict=True)
    except Exception:  # whatever breaks the scanner hides something from it
        return PickleVerdict((), damaged=True)
    return _verdict(result)


def scan_stream(file: BinaryIO, name: str) -> PickleVerdict:
    """Judge the opcodes from the stream's present position."""
    try:
        result = scan_pickle_bytes(file, name, strict=True)
    except Exception:
        return PickleVerdict((), damaged=True)
    return _verdict(result)


def _verdict(result: ScanResult) -> PickleVerdict:
    dangerous = {f"{g.module}.{g.name}" for g in result.globals if g.safety == SafetyLevel.Dangerous}
    return PickleVerdict(tuple(sorted(dangerous)), damaged=bool(result.scan_err))
