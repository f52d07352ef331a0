"""Made-up records in the form of a data set that is not at hand: `python -m rlhf_data.sources.samples FILE [N]`."""

import json
import random
import sys
from pathlib import Path
from typing import Any

from rlhf_data.sources.ultrafeedback import ASPECTS

_TOPICS = ("tides", "sourdough", "binary search", "the French Revolution", "photosynthesis", "chess openings")
_TASKS = ("Explain", "Summarise what matters about", "Give three facts about", "Write a haiku about")
_MODELS = ("falcon-40b-instruct", "gpt-4", "starchat", "wizardlm-7b", "alpaca-7b")
_NOT_A_NUMBER = 0.01  # of the ratings


def make_ultrafeedback(path: Path, n: int, seed: int = 0) -> Path:
    """Write `n` records of UltraFeedback's form as JSON lines; a hundredth of the ratings is "N/A".

    The form is that of the README of OpenBMB/UltraFeedback: ratings are texts, every answer has a system prompt.
    """
    rng = random.Random(seed)
    lines = [json.dumps(_record(rng, index), ensure_ascii=False) for index in range(n)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _record(rng: random.Random, index: int) -> dict[str, Any]:
    task, topic = rng.choice(_TASKS), rng.choice(_TOPICS)
    models = rng.sample(_MODELS, 4)
    return {
        "source": rng.choice(("sharegpt", "evol_instruct", "flan_v2_cot")),
        "instruction": f"{task} {topic} (no. {index}).",
        "models": models,
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
        "completions": [_answer(rng, model, topic) for model in models],
    }


def _answer(rng: random.Random, model: str, topic: str) -> dict[str, Any]:
    quality = rng.randint(1, 5)
    principle = rng.choice(("helpfulness", "honesty", "truthfulness"))
    return {
        "model": model,
        "principle": principle,
        "custom_system_prompt": f"As an AI assistant, put {principle} first.",
        "response": " ".join(
            [f"{model} on {topic}:", *rng.choices(("it", "is", "known", "that", "some", "are"), k=8 * quality)]
        ),
        "annotations": {aspect: _annotation(rng, quality) for aspect in ASPECTS},
    }


def _annotation(rng: random.Random, quality: int) -> dict[str, str]:
    rating = min(5, max(1, quality + rng.choice((-1, 0, 0, 1))))
    return {"Rating": "N/A" if rng.random() < _NOT_A_NUMBER else str(rating), "Rationale": "Made up."}


if __name__ == "__main__":
    print(make_ultrafeedback(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200))
