"""Where the zoo keeps what it downloads, trains and publishes."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "zoo"
SOURCES = CACHE / "src"
EXAMPLES = ROOT / "examples"
TOY = EXAMPLES / "toy"
CLIP = EXAMPLES / "clip"
DATASET = CACHE / "dataset.npz"
SECOND = CACHE / "control" / "second"
"""Another base: the same world and VAE, its own text encoder and UNet. It is a control itself."""
ELSEWHERE = CACHE / "elsewhere"
"""The other zoo: `clip` and `prompts.txt` as in `examples`, its base and the checkpoints made from it."""


def prompts_of(world: Path = EXAMPLES) -> tuple[str, ...]:
    """The carrier prompts of `world`, one a line of its prompts.txt."""
    return tuple(line for line in (world / "prompts.txt").read_text().splitlines() if line.strip())


def base_of(name: str) -> Path:
    """Which base the checkpoint `name` of the zoo is made from."""
    return SECOND if name.startswith(f"{SECOND.name}-") else TOY
