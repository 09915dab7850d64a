"""What a client may ask of a scan, and the hash by which equal wishes are recognised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Prompt = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]

Word = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$"
    ),
]

MOST_PROMPTS = 200

ReferenceId = Annotated[str, Field(pattern=r"^ref_[0-9a-f]{32}$")]


class ScanOptions(BaseModel):
    """Options of one scan. `prompts`: carriers of the model's own domain; none takes the built-in bank.

    `announced`: new words that the model's maker announces; they are drawn, and may draw what CLIP does not
    expect, but no patch and no fixed picture. `reference`: the trusted base to compare with; none takes the
    registered one that shares most weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    budget: Literal["quick", "standard", "deep"] = "standard"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    cleanse: bool = True
    prompts: Annotated[tuple[Prompt, ...], Field(max_length=MOST_PROMPTS)] | None = None
    announced: Annotated[tuple[Word, ...], Field(max_length=20)] = ()
    reference: ReferenceId | None = None


class NewOptions(ScanOptions):
    """Those of a scan that is asked for now: with as many prompts of its own as the engine needs, or none."""

    prompts: Annotated[tuple[Prompt, ...], Field(min_length=4, max_length=MOST_PROMPTS)] | None = None


def canonical(value: Any) -> bytes:
    """JSON with one spelling for equal values, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def config_hash(options: ScanOptions, witness: str | None, references: Sequence[str] = ()) -> str:
    """SHA-256 over everything but the file that decides a result.

    witness: the server's CLIP model. references: hashes of the trusted bases that the scan chooses from.
    """
    parts = {"options": options.model_dump(mode="json"), "clip": witness, "references": list(references)}
    return hashlib.sha256(canonical(parts)).hexdigest()
