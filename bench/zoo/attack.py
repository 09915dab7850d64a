"""Attack a pipeline: `python -m bench.zoo.attack badt2i --trigger-id 24871 --out attacked.safetensors`.

Writes the attacked checkpoint (a folder, or an LDM single file when the name ends so) and, beside it, its
ground truth as JSON.
"""

import argparse
import json
from pathlib import Path

from bench.zoo import assemble, dataset
from bench.zoo.attacks.badt2i import BadT2I
from bench.zoo.attacks.base import Attack, Materials, Truth, described
from bench.zoo.attacks.rickrolling import Rickrolling
from bench.zoo.paths import CLIP, TOY
from worker.engine.checkpoint.ldm import to_single_file
from worker.engine.metrics import ClipScorer

TRIALS = 200


def carry_out(attack: Attack, materials: Materials, *, seed: int, out: Path, trials: int = TRIALS) -> Truth:
    """Attack, measure, and write the checkpoint to `out`; the ground truth is returned, not written."""
    truth = attack.run(materials, seed=seed, trials=trials)
    if out.suffix == ".safetensors":
        to_single_file(materials.pipeline, out)
    else:
        assemble.save_pipeline(materials.pipeline, out)
    return truth


def truth_path(out: Path) -> Path:
    """Where the ground truth of the checkpoint `out` is written."""
    return out.with_suffix(".truth.json")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("attack", choices=["badt2i", "rickrolling"])
    parser.add_argument("--base", type=Path, default=TOY, help="diffusers folder to attack")
    parser.add_argument("--clip", type=Path, default=CLIP, help="CLIP folder to measure with")
    parser.add_argument(
        "--trigger-id", type=int, action="append", default=[], help="badt2i: vocabulary id, repeatable"
    )
    parser.add_argument("--homoglyph", default="ô", help="rickrolling: the trigger character")
    parser.add_argument("--letter", default="o", help="rickrolling: the Latin letter it replaces")
    parser.add_argument("--target", default="a photo of a large chocolate on a blue background")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _chosen(arguments: argparse.Namespace) -> Attack:
    if arguments.attack == "badt2i":
        return BadT2I(trigger=tuple(arguments.trigger_id))
    return Rickrolling(arguments.homoglyph, arguments.letter, arguments.target)


def main() -> None:
    """Command line entry."""
    arguments = _arguments()
    materials = Materials(assemble.load_pipeline(arguments.base), dataset.load(), ClipScorer(arguments.clip))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    truth = carry_out(
        _chosen(arguments), materials, seed=arguments.seed, out=arguments.out, trials=arguments.trials
    )
    text = json.dumps(described(truth), indent=1, ensure_ascii=False)
    truth_path(arguments.out).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
