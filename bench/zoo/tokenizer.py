"""The CLIP BPE tokenizer with its real 49,408 entries, built without a network hub.

The merges come from `bpe_simple_vocab_16e6.txt.gz` inside the `open_clip_torch` wheel (MIT).
"""

import gzip
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from bench.zoo.paths import SOURCES

WHEEL = "open_clip_torch==3.3.0"
MEMBER = "open_clip/bpe_simple_vocab_16e6.txt.gz"
MERGES = 48894
LENGTH = 77


def _merges_file() -> Path:
    """The vocabulary file, taken out of the wheel once (the package itself is not installed)."""
    target = SOURCES / MEMBER
    if not target.exists():
        SOURCES.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "-d", str(SOURCES), WHEEL], check=True)
        wheel = next(SOURCES.glob("open_clip_torch-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(MEMBER, SOURCES)
    return target


@cache
def build_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer; pads with the end token 49407, as Stable Diffusion 1.x does."""
    lines = gzip.decompress(_merges_file().read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : MERGES + 1]]
    characters = list(bytes_to_unicode().values())
    words = [*characters, *(character + "</w>" for character in characters)]
    words += ["".join(merge) for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)
