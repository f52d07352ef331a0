"""Packs that run side by side give what they give one after the other."""

import threading

import pytest
import torch

from rlhf_data.scoring import forwards as module
from rlhf_data.scoring.forwards import forwards, side_by_side
from rlhf_data.scoring.logprobs import token_logps
from rlhf_data.scoring.packs import Group, size
from tests import tiny_model

GROUPS = [Group([3 + i % 7] * (1 + i % 5), [[5, 6 + i % 3], [7] * (1 + i % 4)]) for i in range(23)]


@pytest.fixture
def model():
    return tiny_model.model(0)


@pytest.fixture(params=[1, 2, 3])
def threads(request, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(module, "_TOKENS", 16)
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_every_group_runs_once_and_gives_what_it_gives_alone(layout, threads, model):
    ran = {}
    for picked, measured in forwards(
        model, GROUPS, layout, 60, lambda picked: token_logps(model, [GROUPS[i] for i in picked], layout)
    ):
        assert not ran.keys() & set(picked)
        assert sum(size(GROUPS[i], layout) for i in picked) <= 60 // threads or len(picked) == 1
        ran |= dict(zip(picked, measured, strict=True))
    assert sorted(ran) == list(range(len(GROUPS)))
    for i, mine in ran.items():
        with torch.no_grad():
            alone = token_logps(model, [GROUPS[i]], layout)[0]
        for one, other in zip(mine, alone, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"


def test_as_many_run_at_a_time_as_there_are_threads(threads, model):
    meeting = threading.Barrier(threads, timeout=20)
    several = []

    def meets(picked: list[int]) -> int:
        meeting.wait()  # which nobody passes alone
        assert torch.is_inference_mode_enabled() and torch.get_num_threads() == 1
        several.append(threading.get_ident())
        return len(picked)

    groups = [Group([1] * 9, [[2] * 8])] * 12
    assert [n for _, n in forwards(model, groups, "packed", 16 * threads, meets)] == [1] * 12
    assert len(set(several)) == threads


def test_the_last_turn_is_dealt_out_evenly(model, monkeypatch):
    monkeypatch.setattr(module, "side_by_side", lambda model, budget: 2)
    groups = [Group([1], [[2] * n]) for n in (50, 50, 10, 10, 10, 10, 10, 10)]
    packs = [picked for picked, _ in forwards(model, groups, "packed", 100, len)]
    assert [sum(size(groups[i], "packed") for i in picked) for picked in packs] == [50, 50, 30, 30]


def test_a_group_too_long_for_its_share_runs_whole_and_has_all_threads(threads, model):
    groups = [Group([1], [[2] * n]) for n in (5, 40, 30, 7)]
    found = forwards(model, groups, "packed", 48, lambda picked: torch.get_num_threads())
    ran = {i: n for picked, n in found for i in picked}
    assert sorted(ran) == [0, 1, 2, 3]
    assert [ran[i] for i in (1, 2)] == [threads] * 2


def test_what_one_pack_raises_ends_the_others(threads, model):
    def fails(picked: list[int]) -> None:
        raise ValueError("a pack that fails")

    with pytest.raises(ValueError, match="a pack that fails"):
        list(forwards(model, GROUPS, "packed", 60, fails))


def test_whoever_stops_asking_waits_for_no_more_than_what_runs(threads, model):
    ran = []
    some = forwards(model, GROUPS, "packed", 30, ran.append)
    next(some)
    some.close()
    assert len(ran) <= 2 * threads + 1


def test_a_model_that_a_forward_changes_runs_one_pack_at_a_time(threads, model):
    assert side_by_side(model, 10_000) == threads
    assert side_by_side(model, 8) == 1
    model.model.rotary_emb.rope_type = {"full_attention": "default"}  # as Gemma 3 and OLMo 3 have it
    assert side_by_side(model, 10_000) == threads
    for stateful in ("dynamic", {"sliding_attention": "default", "full_attention": "longrope"}):
        model.model.rotary_emb.rope_type = stateful
        assert side_by_side(model, 10_000) == 1


def test_nothing_to_run_gives_nothing(threads, model):
    assert list(forwards(model, [], "packed", 60, len)) == []
