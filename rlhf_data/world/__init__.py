"""A small world of feedback that the project makes itself, to learn from in minutes and to test every rule in.

Its questions have answers that a program can grade, so whether training made a policy better is a number, not an
opinion. There are four categories, in equal shares:

    arithmetic   Add: 2 to each of 3 1 5 4            → 5 3 7 6
    spelling     Spell backwards: k a b e             → e b a k
    sorting      Sort: 7 2 9 4                        → 2 4 7 9
    politeness   Reply politely: pass me the red pen  → gladly , the red pen

Every question has four answers: `right`, `near` (one slip), `wrong` (always the same mistake: stopping halfway, not
reversed, descending, about another thing) and `rude` (a brush-off). A policy trained on all of them learns the mixture;
preference training must shift it towards the right ones, on questions that it has never seen.

A row of raw/ratings.jsonl is one annotator's rating of one answer: {"id", "category", "question", "answer",
"annotator", "rating", "model"}. The rating is 1 + 4 · grade, rounded, plus the annotator's error, clipped to 1…5: "ada"
is mild, "ben" strict, so they disagree, and answers tie. Damaged lines by "guest" (two of each kind in
`ratings.DAMAGE`, 14 in all) must end in quarantine. model/ is a tiny Llama with random weights and a tokenizer with a
chat template. Both come from `generate(folder, prompts=..., seed=...)`, or `python -m rlhf_data.world FOLDER`.

`verify(prompt, completion)` grades any text from 0 to 1; it reads the question from the prompt's last message.

To add a category, add one entry to `CATEGORIES` in categories.py: the words that open its questions, the form of a
task, and three functions that pose, answer and grade one.
"""

from rlhf_data.world.categories import CATEGORIES, Answers, Category, verify
from rlhf_data.world.folder import World, generate

__all__ = ["CATEGORIES", "Answers", "Category", "World", "generate", "verify"]
