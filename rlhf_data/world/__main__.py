"""`python -m rlhf_data.world FOLDER` makes the world there."""

import argparse
import os
from pathlib import Path

from rlhf_data.world import CATEGORIES, generate
from rlhf_data.world.folder import PROMPTS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlhf_data.world", description="Make the small world in FOLDER.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="made if need be; other files in it stay")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="questions in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of data and weights (default: %(default)s)")
    asked = parser.parse_args()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a bar for a file of 2 MB is noise
    try:
        world = generate(asked.folder, prompts=asked.prompts, seed=asked.seed)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{asked.folder}: {'made' if world.made else 'already made'}, seed {asked.seed}")
    print(f"  {world.ratings}: {world.lines} lines, {world.damaged} of them damaged")
    print(
        f"  {world.prompts} prompts in {len(CATEGORIES)} categories ({', '.join(CATEGORIES)}), 4 answers, 2 annotators"
    )
    print(f"  {world.model}: an untrained tiny Llama and its tokenizer")


if __name__ == "__main__":
    main()
