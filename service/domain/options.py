"""What a client may ask of a scan, and the hash by which equal wishes are recognised."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Prompt = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]


class ScanOptions(BaseModel):
    """Options of one scan. `prompts`: carriers of the model's own domain; none takes the built-in bank."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    budget: Literal["quick", "standard", "deep"] = "standard"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    cleanse: bool = True
    prompts: Annotated[tuple[Prompt, ...], Field(max_length=200)] | None = None


def canonical(value: Any) -> bytes:
    """JSON with one spelling for equal values, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def config_hash(options: ScanOptions, witness: str | None) -> str:
    """SHA-256 over everything but the file that decides a result. witness: the server's CLIP model."""
    return hashlib.sha256(
        canonical({"options": options.model_dump(mode="json"), "clip": witness})
    ).hexdigest()
