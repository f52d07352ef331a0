"""Ids are content: the same everywhere, for ever, and no two contents share one by a trick of their boundaries."""

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64, xxh3_128_hexdigest

from rlhf_data import ids

few = settings(deadline=None, max_examples=50)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
contents = texts.map(ids.content_id)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": texts}), min_size=1
)


def prompts(*conversations) -> pl.Series:
    return pl.Series("prompt", list(conversations), dtype=ids.MESSAGES)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@few
@given(first=messages, second=messages)
def test_two_prompts_share_an_id_only_if_they_are_the_same_messages(first, second):
    one, two = ids.prompt_ids(prompts(first, second))
    assert (one == two) == (first == second)


def test_a_boundary_between_messages_is_part_of_the_id():
    shifted = [
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "user", "content": "auser:1:b"}],
        [{"role": "user", "content": "ab"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": ""}, {"role": "user", "content": "ab"}],
    ]
    assert ids.prompt_ids(prompts(*shifted)).n_unique() == len(shifted)


def test_ids_are_hashes_of_canonical_bytes_and_stay_what_they_are():
    (prompt,) = ids.prompt_ids(prompts(user("héllo")))
    (completion,) = ids.completion_ids(pl.Series([prompt]), pl.Series([""]))
    assert prompt == xxh3_128_hexdigest("user:6:héllo".encode())
    assert completion == xxh3_128_hexdigest(f"{prompt}:".encode())
    # Written down: another value breaks every published snapshot, every split and every score that was paid for.
    assert (prompt, completion) == ("aede6c7a6c06460b227a64ec7cbca0ee", "6464b310eac695385b22b3cfadbbda2d")
    assert ids.split_keys(prompts(user("héllo")))[0] == "5c04d7f26e6ecfce2ad2fc5553253f9c"


def test_an_id_is_null_only_of_null():
    assert ids.prompt_ids(prompts(None, user(""))).is_null().to_list() == [True, False]
    assert ids.completion_ids(pl.Series(["p" * 32]), pl.Series([""])).null_count() == 0


def test_one_text_under_two_prompts_is_two_completions():
    found = ids.completion_ids(pl.Series(["a" * 32, "b" * 32]), pl.Series(["yes", "yes"]))
    assert found.n_unique() == 2


@few
@given(parts=st.lists(texts, max_size=4), others=st.lists(texts, max_size=4))
def test_a_content_id_knows_where_its_parts_end(parts, others):
    assert (ids.content_id(*parts) == ids.content_id(*others)) == (parts == others)


def splitmix64(state: int) -> int:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014), in whole numbers of Python."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
    return state ^ (state >> 31)


@few
@given(parts=st.lists(texts, max_size=3), seed=st.integers(0, 3), purpose=st.sampled_from(["split", "rank"]))
def test_a_keyed_hash_is_the_mixed_first_half_of_the_id_and_the_key(parts, seed, purpose):
    known = ids.content_id(*parts)
    mixed = int(known[:16], 16) ^ xxh3_64(f"{purpose}:{seed}".encode()).intdigest()
    assert ids.keyed_hash(pl.Series([known]), purpose, seed).to_list() == [splitmix64(mixed)]


def test_the_mixer_is_that_of_the_published_generator():
    # The published generator of 64-bit numbers, seeded with 0, steps by the golden gamma and starts so.
    gamma = 0x9E3779B97F4A7C15
    assert [splitmix64(gamma * n % 2**64) for n in (1, 2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_no_ids_have_no_hashes():
    assert ids.keyed_hash(pl.Series([], dtype=pl.String), "split").to_list() == []


@few
@given(keys=st.lists(contents, min_size=1, unique=True), seed=st.integers(0, 3), data=st.data())
def test_a_keyed_hash_depends_on_nothing_but_purpose_seed_and_id(keys, seed, data):
    alone = {key: ids.keyed_hash(pl.Series([key]), "purpose", seed)[0] for key in keys}
    shuffled = data.draw(st.permutations(keys))
    assert ids.keyed_hash(pl.Series(shuffled), "purpose", seed).to_list() == [alone[key] for key in shuffled]
    assert ids.keyed_hash(pl.Series(keys), "other", seed).to_list() != list(alone.values())
    assert ids.keyed_hash(pl.Series(keys), "purpose", seed + 1).to_list() != list(alone.values())


def test_a_keyed_fraction_is_never_one(monkeypatch):
    largest = pl.Series("id", [2**64 - 1, 0], dtype=pl.UInt64)
    monkeypatch.setattr(ids, "keyed_hash", lambda *_: largest)
    most, least = ids.keyed_fraction(pl.Series(["x", "y"]), "purpose")
    assert 0.999 < most < 1.0
    assert least == 0.0


def test_keyed_fractions_are_even():
    fractions = ids.keyed_fraction(pl.Series([ids.content_id(str(i)) for i in range(4000)]), "purpose").sort()
    # Kolmogorov–Smirnov: 1.95 / √n is passed by chance once in a thousand.
    worst = max(abs(f - i / 4000) for i, f in enumerate(fractions))
    assert worst < 1.95 / 4000**0.5


@few
@given(text=st.text(st.sampled_from("aAßé \t\nﬁ"), min_size=1, max_size=12))
def test_a_split_key_forgets_case_white_space_and_width(text):
    variants = [text, text.upper(), f"  {text}\n", text.replace(" ", "\u00a0 ")]
    assert ids.split_keys(prompts(*map(user, variants))).n_unique() == 1


def test_a_split_key_is_the_first_user_turn_whatever_follows_or_goes_before():
    system, turn, reply = (
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    )
    keys = ids.split_keys(prompts([turn], [system, turn], [turn, reply, {"role": "user", "content": "More"}]))
    assert keys.n_unique() == 1


def test_a_prompt_without_a_user_turn_has_a_split_key_too():
    assert ids.split_keys(prompts([{"role": "system", "content": "go"}])).null_count() == 0
