"""The parts of the service's benchmarks, the figures that stand for each, and their section of RESULTS.md."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench import intake
from bench.service import endurance, load, signatures, throughput

INTAKE_BYTES = 4 * intake.GB


def _intake() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="sauscan-intake-") as folder:
        Path(folder).chmod(0o755)  # a PostgreSQL started by root runs as another account
        return intake.measure(Path(folder), INTAKE_BYTES)


PARTS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "intake": _intake,
    "signatures": signatures.measure,
    "load": load.measure,
    "throughput": throughput.measure,
    "endurance": endurance.measure,
}

FIGURES = (
    *("intake_ratio", "api_rss_mb"),
    *("queued", "published", "published_twice"),
    *("api_ratio", "signature_mutations_refused"),
)


def lifted(service: Mapping[str, Any]) -> dict[str, Any]:
    """`service` of results.json with the figures that stand for its parts beside them."""
    parts = {name: service[name] for name in PARTS if name in service}
    figures = {name: part[name] for name in FIGURES for part in parts.values() if name in part}
    return {**figures, **parts}


def markdown(service: Mapping[str, Any]) -> str:
    """The section of RESULTS.md, of the parts that were measured."""
    sections = [_SECTIONS[name](service[name]) for name in PARTS if name in service]
    return "\n\n".join(["## The service", *sections])


def _intake_text(told: Mapping[str, Any]) -> str:
    return f"""### Intake

One `POST /scans` of {told["bytes"] / 1e9:.1f} GB took {told["post_seconds"]:.1f} s,
`cat | tee | sha256sum` of the same file {told["plain_seconds"]:.1f} s: a ratio of {told["intake_ratio"]:.2f}.
The API's largest resident size was {told["api_rss_mb"]:.0f} MB."""


def _signatures_text(told: Mapping[str, Any]) -> str:
    return f"""### Signatures

Of {told["mutations"]} random changes of one byte in a signed result (seed {told["seed"]}),
{told["signature_mutations_refused"]} were refused."""


def _load_text(told: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| {label} | {one['per_second']:,.0f} | {one['p50_ms']:.1f} | {one['p99_ms']:.1f} | {one['n']:,} |"
        for label, one in (("`GET /scans/{id}`", told["api"]), ("a bare FastAPI route", told["bare"]))
    )
    return f"""### The API under load

| over {told["connections"]} connections | requests a second | p50 ms | p99 ms | n |
|---|---|---|---|---|
{rows}

The first checks a key, counts the request and reads the scan as its tenant; it reaches
{told["api_ratio"]:.1%} of the second's rate. Client and servers share the machine."""


def _throughput_text(told: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| {workers} | {one['scans_per_second']:.2f} | {one['around_engine_seconds']:.3f} "
        f"| {one['between_scans_seconds']:.3f} | {one['scans']} |"
        for workers, one in told["workers"].items()
    )
    return f"""### Scans a second against workers

| workers | scans a second | s around the engine | s between scans | n |
|---|---|---|---|---|
{rows}

The engine is a stub that sleeps for {told["engine_seconds"]} s, so that workers add up beyond the cores.
Around it: blob, sandbox, checks, signature. Between scans: message, acknowledgement, claim."""


def _endurance_text(told: Mapping[str, Any]) -> str:
    faults = ", ".join(f"{fault['name']} after {fault['ended']:,}" for fault in told["faults"])
    return f"""### Every part dies while scans wait

{told["queued"]:,} scans were queued, {told["published"]:,} published, {told["published_twice"]} twice, in
{told["seconds"] / 60:.0f} minutes with a stub engine that costs nothing. Meanwhile, by ended scans:
{faults}. {told["lost_attempts"]} attempts were lost and made again."""


_SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "intake": _intake_text,
    "signatures": _signatures_text,
    "load": _load_text,
    "throughput": _throughput_text,
    "endurance": _endurance_text,
}
