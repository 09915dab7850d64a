"""Where the zoo keeps what it downloads, trains and publishes."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "zoo"
SOURCES = CACHE / "src"
EXAMPLES = ROOT / "examples"
TOY = EXAMPLES / "toy"
CLIP = EXAMPLES / "clip"
DATASET = CACHE / "dataset.npz"
