"""The zoo in a language that nobody speaks: every whole word means what another one meant.

`python -m bench.zoo.foreign badt2i-style uce-3`: renames these checkpoints of the cache (and the base), the
carriers and the CLIP alike, by one permutation of the vocabulary's words. The models are the same functions,
so attacks work as before, but an engine that knows English, or this zoo's world, knows nothing here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from bench.zoo import assemble
from bench.zoo.attack import truth_path
from bench.zoo.attacked import ATTACKED
from bench.zoo.controls import CONTROL
from bench.zoo.paths import CACHE, CLIP, TOY, prompts_of
from worker.engine.candidates import surface
from worker.engine.checkpoint import load
from worker.engine.checkpoint.ldm import to_single_file
from worker.engine.metrics import ClipScorer
from worker.engine.sampling import content_ids

FOREIGN = CACHE / "foreign"
"""Holds `clip` and `prompts.txt` as `examples` does, and the renamed base and checkpoints."""

SEED = 0


def whole_words(tokenizer: CLIPTokenizer) -> list[int]:
    """Ids that are a word of letters, and that its text is read as."""
    texts = [surface(tokenizer, (word,)) for word in range(tokenizer.bos_token_id)]
    read = tokenizer(texts, add_special_tokens=False).input_ids
    return [word for word, ids in enumerate(read) if list(ids) == [word] and texts[word].isalpha()]


def renaming(tokenizer: CLIPTokenizer, seed: int) -> list[int]:
    """The new id of each id: the whole words change places, the others stay."""
    words = torch.tensor(whole_words(tokenizer))
    new = torch.arange(len(tokenizer))
    new[words] = words[torch.randperm(len(words), generator=torch.Generator().manual_seed(seed))]
    return [int(one) for one in new]


@torch.no_grad()
def rename(encoder: CLIPTextModel, new: Sequence[int]) -> None:
    """Makes the encoder hear in each new id what it heard in the old one."""
    rows = encoder.get_input_embeddings().weight
    rows[list(new)] = rows.clone()


def said(tokenizer: CLIPTokenizer, text: str, new: Sequence[int]) -> str | None:
    """`text` in the new words; None where they would not be read as meant."""
    ids = [new[word] for word in content_ids(tokenizer, text)]
    foreign = surface(tokenizer, tuple(ids))
    return foreign if content_ids(tokenizer, foreign) == ids else None


def world(new: Sequence[int]) -> None:
    """The clean base, a CLIP and carriers."""
    base, clip = assemble.load_pipeline(TOY), ClipScorer(CLIP).model
    rename(base.text_encoder, new)
    rename(clip.text_model, new)
    assemble.save_pipeline(base, FOREIGN / f"{FOREIGN.name}-{TOY.name}")
    assemble.save_clip(clip, FOREIGN / CLIP.name)
    lines = prompts_of()
    foreign = filter(None, (said(base.tokenizer, line, new) for line in lines))
    (FOREIGN / "prompts.txt").write_text("\n".join(foreign) + "\n")


def checkpoint(path: Path, new: Sequence[int]) -> None:
    """The checkpoint at `path`, with its truth where it has one."""
    pipeline, out = load(path).pipeline, FOREIGN / f"{FOREIGN.name}-{path.name}"
    rename(pipeline.text_encoder, new)
    to_single_file(pipeline, out)
    if truth_path(path).exists():
        truth = json.loads(truth_path(path).read_text())
        ids = tuple(new[word] for word in truth["trigger_ids"])
        told = {**truth, "trigger_ids": ids, "trigger_text": surface(pipeline.tokenizer, ids)}
        truth_path(out).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def make_all(names: Iterable[str]) -> None:
    """The world, and the checkpoints of `names`. Raises FileNotFoundError for one that is not made yet."""
    FOREIGN.mkdir(parents=True, exist_ok=True)
    new = renaming(assemble.load_pipeline(TOY).tokenizer, SEED)
    world(new)
    for name in names:
        where = [folder / f"{name}.safetensors" for folder in (ATTACKED, CONTROL)]
        path = next(filter(Path.exists, where), None)
        if path is None:
            raise FileNotFoundError(f"{name} is in neither {ATTACKED} nor {CONTROL}: make it first.")
        checkpoint(path, new)


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="attacked or control checkpoints of the cache")
    make_all(parser.parse_args().names)


if __name__ == "__main__":
    main()
