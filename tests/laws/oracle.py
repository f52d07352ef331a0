"""The whole data side a second time, slowly: dictionaries, loops and exact fractions, and nothing of polars.

Observations → merged texts → ratings → pairs or answers → mix → weights. The laws hold the steps against it. It follows
the docs, not the code: where the two disagree, one of them is wrong. Rewards and weights are fractions, so no decision
(a tie, a margin, a share) hangs on how a float was rounded.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations

from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

_WORD = (1 << 64) - 1
HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Observation:
    """What one record says; `other` is None but for comparisons, `value` but for demonstrations never."""

    source: str
    file: str
    record: int
    prompt: str
    completion: str
    kind: str
    value: Fraction | None = None
    other: str | None = None
    annotator: str | None = None
    aspect: str | None = None
    category: str | None = None
    model: str | None = None

    @property
    def ref(self) -> str:
        return f"{self.file}#{self.record}"

    @property
    def prompt_id(self) -> str:
        return prompt_id(self.prompt)

    @property
    def first(self) -> str:
        return completion_id(self.prompt, self.completion)

    @property
    def second(self) -> str | None:
        return None if self.other is None else completion_id(self.prompt, self.other)


@dataclass(frozen=True)
class Text:
    """An answer as it is held once."""

    prompt: str
    completion: str
    source: str
    category: str | None
    model: str | None


@dataclass(frozen=True)
class Rated:
    """An answer as one source rates it."""

    prompt_id: str
    completion_id: str
    source: str
    rating: Fraction | None
    reward: Fraction | None
    variance: Fraction | None
    label: bool | None
    votes: int
    refs: frozenset[str]


@dataclass(frozen=True)
class Pair:
    """A pair; `margin` and the rewards are None where the two answers were compared and not rated."""

    prompt_id: str
    chosen_id: str
    rejected_id: str
    source: str
    preference: Fraction
    votes: int
    refs: frozenset[str]
    chosen_reward: Fraction | None = None
    rejected_reward: Fraction | None = None
    margin: Fraction | None = None

    @property
    def sides(self) -> frozenset[str]:
        return frozenset((self.chosen_id, self.rejected_id))


# --- identity ---------------------------------------------------------------------------------------------------------


def normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_id(prompt: str) -> str:
    return xxh3_128_hexdigest(f"user:{len(prompt.encode())}:{prompt}".encode())


def completion_id(prompt: str, completion: str) -> str:
    return xxh3_128_hexdigest(f"{prompt_id(prompt)}:{completion}".encode())


def pair_id(chosen: str, rejected: str) -> str:
    return xxh3_128_hexdigest(f"{chosen}:{rejected}".encode())


def mixed(number: int, purpose: str, seed: int) -> int:
    """SplitMix64's finaliser (Steele et al. 2014) of a number and a key."""
    number ^= xxh3_64_intdigest(f"{purpose}:{seed}".encode())
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & _WORD
    return number ^ (number >> 31)


def bits(identity: str) -> int:
    return int(identity[:16], 16)


def lot(identity: str, purpose: str, seed: int) -> int:
    return mixed(bits(identity), purpose, seed)


def split_of(prompt: str, test: float, validation: float) -> str:
    """The split of a prompt by the hash of its normalised root."""
    place = (lot(xxh3_128_hexdigest(normalised(prompt).encode()), "split", 0) >> 11) / (1 << 53)
    return "test" if place < test else "validation" if place >= 1.0 - validation else "train"


# --- texts ------------------------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits of the normalised text; a Chinese character is a word by itself."""
    found, inside = [], False
    for letter in normalised(text):
        alone = "\u4e00" <= letter <= "\u9fff"
        part = unicodedata.category(letter)[0] in "LMN"
        if part and inside and not alone:
            found[-1] += letter
        elif part:
            found.append(letter)
        inside = part and not alone
    return found


def runs(text: str, n: int) -> list[tuple[str, ...]]:
    """Every run of n words; a text of fewer words is one run, one without words has none."""
    held = words(text)
    return [tuple(held[k : k + n]) for k in range(max(len(held) - n + 1, min(len(held), 1)))]


def refusal(seen: Observation) -> str | None:
    """The code by which an observation is refused, None where it is sound."""
    value = seen.value
    if not seen.prompt.strip():
        return "prompt.empty"
    if "\0" in seen.prompt or "\0" in seen.completion or "\0" in (seen.other or ""):
        return "text.nul"
    if seen.kind == "comparison" and seen.completion == seen.other:
        return "pair.identical"
    if seen.kind == "comparison" and value is not None and not 0 <= value <= 1:
        return "preference.out_of_range"
    return None


def merged(observations: Iterable[Observation]) -> dict[str, Text]:
    """Each answer once by its id; whoever names a text, its category or its model first, names it."""
    held: dict[str, Text] = {}
    for seen in observations:
        for text, model in ((seen.completion, seen.model), (seen.other, None)):
            if text is None:
                continue
            key = completion_id(seen.prompt, text)
            known = held.setdefault(key, Text(seen.prompt, text, seen.source, seen.category, model))
            held[key] = replace(known, model=known.model or model)
    return held


def same_texts(observations: Sequence[Observation], keys: Sequence[str]) -> set[str]:
    """The answers that stay where those with the same texts (but for case, white space and form) are one: the smallest
    (prompt_id, completion_id) of each group, or of groups of prompts all answers of the smallest.
    """
    held = merged(observations)
    groups: dict[tuple[str, ...], set[tuple[str, str]]] = defaultdict(set)
    for key, text in held.items():
        told = {"prompt": normalised(text.prompt), "completion": normalised(text.completion)}
        groups[tuple(told[k] for k in keys)].add((prompt_id(text.prompt), key))
    if list(keys) == ["prompt"]:
        first = {min(group)[0] for group in groups.values()}
        return {key for key, text in held.items() if prompt_id(text.prompt) in first}
    return {min(group)[1] for group in groups.values()}


# --- ratings ----------------------------------------------------------------------------------------------------------


def mean(values: Sequence[Fraction]) -> Fraction | None:
    return sum(values, Fraction(0)) / len(values) if values else None


def variance(values: Sequence[Fraction]) -> Fraction | None:
    """Of a sample; None of fewer than two values."""
    middle = mean(values)
    if middle is None or len(values) < 2:
        return None
    return sum(((value - middle) ** 2 for value in values), Fraction(0)) / (len(values) - 1)


def rated(observations: Iterable[Observation], scale: tuple[int, int] | None = None) -> list[Rated]:
    """One row per answer and source. The reward is that of the rating, or else of the rank, or else of the label."""
    low, high = scale or (0, 1)
    heard: dict[tuple[str, str], list[Observation]] = defaultdict(list)
    for seen in observations:
        if seen.kind == "comparison" or (seen.kind == "rating" and scale and not low <= seen.value <= high):
            continue
        heard[seen.first, seen.source].append(seen)
    found = []
    for (answer, source), group in heard.items():
        values = {k: [s.value for s in group if s.kind == k] for k in ("rating", "rank", "label")}
        liked = mean(values["label"])
        kind = next((k for k in values if values[k]), None)
        slope, start = {"rating": (Fraction(1, high - low), low), "rank": (-1, 0), "label": (2, HALF)}.get(kind, (1, 0))
        middle = mean(values[kind]) if kind else None
        spread = variance(values[kind]) if kind else None
        found.append(
            Rated(
                prompt_id=group[0].prompt_id,
                completion_id=answer,
                source=source,
                rating=mean(values["rating"]) if values["rating"] else mean(values["rank"]),
                reward=None if middle is None else slope * (middle - start),
                variance=None if spread is None else spread * slope**2,
                label=None if liked is None or liked == HALF else liked > HALF,
                votes=len(group),
                refs=frozenset(s.ref for s in group),
            )
        )
    return found


def compared(observations: Iterable[Observation], method: str = "mean") -> list[Pair]:
    """One row per two answers and source, the one with more of the votes as chosen; of a tie the smaller id."""
    heard: dict[tuple[str, frozenset[str]], list[Observation]] = defaultdict(list)
    for seen in observations:
        if seen.kind == "comparison":
            heard[seen.source, frozenset((seen.first, seen.second))].append(seen)
    found = []
    for (source, sides), group in heard.items():
        first, second = sorted(sides)
        votes = [seen.value if seen.first == first else 1 - seen.value for seen in group]
        share = mean(votes)
        if method == "majority":
            ballots = Counter("first" if v > HALF else "second" if v < HALF else "tie" for v in votes)
            share = Fraction(1) if ballots["first"] > max(ballots["second"], ballots["tie"]) else HALF
            share = Fraction(0) if ballots["second"] > max(ballots["first"], ballots["tie"]) else share
        chosen, rejected = (first, second) if share >= HALF else (second, first)
        refs = frozenset(seen.ref for seen in group)
        best = max(share, 1 - share)
        found.append(Pair(group[0].prompt_id, chosen, rejected, source, best, len(votes), refs))
    return found


# --- pairs ------------------------------------------------------------------------------------------------------------


def proposed(answers: Iterable[Rated], strategy: str, seed: int = 0) -> list[Pair]:
    """Pairs of rated answers of one prompt and source; equals stand in the order of their lots."""
    groups: dict[tuple[str, str], list[Rated]] = defaultdict(list)
    for answer in answers:
        if answer.reward is not None:
            groups[answer.prompt_id, answer.source].append(answer)
    found = []
    for group in groups.values():
        ranked = sorted(group, key=lambda one: (-one.reward, lot(one.completion_id, "rank", seed)))
        last = len(ranked) - 1
        if last == 0:
            continue
        drawn = min(range(1, len(ranked)), key=lambda k: lot(ranked[k].completion_id, "best_vs_random", seed))
        places = {
            "best_vs_worst": [(0, last)],
            "best_vs_random": [(0, drawn)],
            "all": list(combinations(range(len(ranked)), 2)),
            "adjacent": [(k, k + 1) for k in range(last)],
        }[strategy]
        for better, worse in ((ranked[i], ranked[j]) for i, j in places):
            found.append(
                Pair(
                    better.prompt_id,
                    better.completion_id,
                    worse.completion_id,
                    better.source,
                    Fraction(1),
                    better.votes + worse.votes,
                    better.refs | worse.refs,
                    better.reward,
                    worse.reward,
                    better.reward - worse.reward,
                )
            )
    return found


def paired(
    answers: Iterable[Rated],
    given: Iterable[Pair],
    *,
    pairing: str,
    min_margin: Fraction = Fraction(0),
    ties: str = "drop",
    most: int | None = None,
    sources: Sequence[str] = (),
    seed: int = 0,
) -> list[Pair]:
    """The pairs: as given and as a strategy makes them; two answers once; at most so many of a prompt."""
    made = [] if pairing == "as_given" else proposed(answers, pairing, seed)
    once: dict[frozenset[str], Pair] = {}
    for one in sorted([*given, *made], key=lambda pair: (sources.index(pair.source), pair.margin is not None)):
        tie = one.preference == HALF or one.margin == 0
        if (tie and ties == "drop") or (not tie and one.margin is not None and one.margin < min_margin):
            continue
        once.setdefault(one.sides, replace(one, preference=HALF) if tie else one)
    if most is None:
        return list(once.values())
    of_prompt: dict[str, list[Pair]] = defaultdict(list)
    for one in once.values():
        of_prompt[one.prompt_id].append(one)

    def place(one: Pair) -> int:
        first = lot(one.chosen_id, "max_pairs_per_prompt", seed)
        return mixed(first ^ bits(one.rejected_id), "max_pairs_per_prompt", seed)

    return [one for group in of_prompt.values() for one in sorted(group, key=place)[:most]]


# --- answers ----------------------------------------------------------------------------------------------------------


def unpaired(
    answers: Iterable[Rated],
    given: Iterable[Pair],
    *,
    label: str = "source",
    threshold: Fraction = Fraction(0),
    gap: Fraction = Fraction(0),
    ties: str = "drop",
    sources: Sequence[str] = (),
) -> list[Rated]:
    """Each answer once: as the first source rates it, or by the share of votes that it won in it."""
    sides: dict[tuple[str, str], list[tuple[Pair, Fraction]]] = defaultdict(list)
    for pair in given:
        sides[pair.chosen_id, pair.source].append((pair, pair.preference))
        sides[pair.rejected_id, pair.source].append((pair, 1 - pair.preference))
    responses = []
    for (answer, source), group in sides.items():
        votes = sum(pair.votes for pair, _ in group)
        reward = 2 * sum((share * pair.votes for pair, share in group), Fraction(0)) / votes - 1
        refs = frozenset(ref for pair, _ in group for ref in pair.refs)
        won = None if reward == 0 else reward > 0
        responses.append(Rated(group[0][0].prompt_id, answer, source, None, reward, None, won, votes, refs))
    once: dict[str, tuple[Rated, bool]] = {}
    both = [(one, False) for one in answers] + [(one, True) for one in responses]
    for one, by_votes in sorted(both, key=lambda row: (sources.index(row[0].source), row[1])):
        once.setdefault(one.completion_id, (one, by_votes))
    rewards: dict[tuple[str, str], list[Fraction]] = defaultdict(list)
    for one, _ in once.values():
        if one.reward is not None:
            rewards[one.prompt_id, one.source].append(one.reward)
    found = []
    for one, by_votes in once.values():
        told, undecided, grey = one.label, by_votes and one.reward == 0, False
        if label != "source":
            middle = threshold if label == "threshold" else mean(rewards[one.prompt_id, one.source])
            above = None if one.reward is None else one.reward - middle
            grey = above is not None and abs(above) < gap
            undecided = label == "prompt_mean" and above == 0
            told = None if above is None or undecided else above >= 0
        if not grey and not (ties == "drop" and told is None and undecided):
            found.append(replace(one, label=told))
    return found


# --- mix and weights --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What the mix and the weights look at."""

    identity: str
    source: str
    split: str
    category: str | None = None
    margin: Fraction | None = None


def drawn(
    rows: Iterable[Row],
    *,
    keep: Mapping[str, Fraction] | None = None,
    most: Mapping[str, int] | None = None,
    share: Mapping[str, Fraction] | None = None,
    seed: int = 0,
) -> set[str]:
    """The identities of the rows of the mix; a share is as many rows as leave no source over its part."""
    held: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: lot(row.identity, "mix", seed)):
        held["" if row.split != "train" else row.source].append(row)
    free = held.pop("", [])
    for source, group in held.items():
        part = (keep or {}).get(source, Fraction(1))
        group[:] = [row for row in group if Fraction(lot(row.identity, "mix", seed), 1 << 64) < part]
        group[:] = group[: (most or {}).get(source, len(group))]
    if share:
        whole = min(len(held.get(source, ())) / part for source, part in share.items() if part)
        for source, group in held.items():
            group[:] = group[: int(whole * share[source])]
    return {row.identity for group in (free, *held.values()) for row in group}


def weights(
    rows: Iterable[Row],
    *,
    source: Mapping[str, Fraction] | None = None,
    category: Mapping[str, Fraction] | None = None,
    row: Callable[[Row], Fraction | None] | None = None,
    clip: Fraction | None = None,
    mean_one: bool = False,
) -> dict[str, Fraction]:
    """The weight of each row; those whose factor is none or negative are left out."""
    found: dict[str, Fraction] = {}
    train = set()
    for one in rows:
        own = Fraction(1) if row is None else row(one)
        if own is None or own < 0:
            continue
        weight = own * (source or {}).get(one.source, 1) * (category or {}).get(one.category, 1)
        found[one.identity] = weight if clip is None else min(weight, clip)
        train |= {one.identity} if one.split == "train" else set()
    middle = mean([found[key] for key in train]) if mean_one else Fraction(1)
    return {key: weight / middle for key, weight in found.items()}
