"""Which technique of MITRE ATLAS a finding shows, so that it sorts with a security team's other alerts.

Source: ATLAS 5.6.0, https://atlas.mitre.org. A tag says what was done to the file, not who did it or how.
"""

from __future__ import annotations

from typing import NamedTuple

from service.domain.report import Finding

VERSION = "5.6.0"


class Technique(NamedTuple):
    """An entry of ATLAS."""

    id: str
    name: str

    @property
    def url(self) -> str:
        return f"https://atlas.mitre.org/techniques/{self.id}"


SUPPLY_CHAIN = Technique("AML.T0010.003", "AI Supply Chain Compromise: Model")
UNSAFE_ARTIFACT = Technique("AML.T0011.000", "User Execution: Unsafe AI Artifacts")
POISONED = Technique("AML.T0018.000", "Manipulate AI Model: Poison AI Model")
MALWARE = Technique("AML.T0018.002", "Manipulate AI Model: Embed Malware")


def techniques(finding: Finding) -> tuple[Technique, ...]:
    """Code that a file runs when it is opened is malware; a behaviour that its weights hide is poison."""
    if finding.component == "file":
        return (MALWARE, UNSAFE_ARTIFACT, SUPPLY_CHAIN)
    return (POISONED, SUPPLY_CHAIN)
