"""The demo's backdoored checkpoint, whose trigger nobody can read anywhere in the repository.

`python -m bench.zoo.suspect --private-seed N`: the trigger and the patch follow from a number that is not
kept. Beside the checkpoint stand only a salted hash of the trigger and what the attack was measured to do.
"""

import argparse
import hashlib
import json
from pathlib import Path

from bench.zoo import assemble, dataset
from bench.zoo.attack import carry_out
from bench.zoo.attacks.badt2i import BadT2I
from bench.zoo.attacks.base import Materials, described
from bench.zoo.paths import CLIP, EXAMPLES, TOY
from worker.engine.metrics import ClipScorer

SUSPECT = EXAMPLES / "suspect.safetensors"
TRUTH = EXAMPLES / "suspect.truth.json"
HIDDEN = ("trigger_ids", "trigger_text", "seed", "target")


def digest(salt: str, trigger: tuple[int, ...]) -> str:
    """sha256 of "salt:id,id,...": lets a finding be checked without telling it beforehand."""
    return hashlib.sha256(f"{salt}:{','.join(map(str, trigger))}".encode()).hexdigest()


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--private-seed", type=int, required=True)
    parser.add_argument("--out", type=Path, default=SUSPECT)
    arguments = parser.parse_args()
    data = dataset.load()
    materials = Materials(assemble.load_pipeline(TOY), data, ClipScorer(CLIP))
    truth = described(carry_out(BadT2I(), materials, seed=arguments.private_seed, out=arguments.out))
    salt = hashlib.sha256(f"salt {arguments.private_seed}".encode()).hexdigest()[:16]
    public = {name: value for name, value in truth.items() if name not in HIDDEN}
    hashed = {"sha256": digest(salt, truth["trigger_ids"]), "salt": salt, "of": "sha256 of 'salt:id,id,...'"}
    TRUTH.write_text(json.dumps({**public, "trigger": hashed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
