import math
import re

from test_snapshot_page import HOSTILE, Page

from rlhf_data.report import run_page
from rlhf_data.report.curves import curves, smoothed, thin, ticks
from rlhf_data.report.evaluation import measures, text_lines
from rlhf_data.report.reliability import BOTTOM, LEFT, RIGHT, TOP, picture
from rlhf_data.report.run import blended, groups

MANIFEST = {"rule": "dpo", "model": {"path": "/models/qwen"}, "snapshot": "20261122T1-5f", "parameters": {"beta": 0.1}}


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def evaluated(before: float, after: float, group: str | None = None) -> dict:
    figures = {"before": estimate(before), "after": estimate(after), "difference": estimate(after - before)}
    lines = [{"group": name, "n": 50, **figures} for name in ([None] if group is None else [None, group])]
    return {"measures": [{"name": "preference accuracy", "share": True, "lines": lines}]}


def sample(prompt: str, answer: str) -> dict:
    turns = [{"role": "user", "content": prompt}]
    rewards = {"before_reward": 0.0, "after_reward": 1.0}
    return {"prompt": turns, "category": prompt, "before": answer, "after": answer, **rewards}


def test_a_run_page_has_what_was_given_and_no_more():
    metrics = [{"step": k, "loss": 1 / k, "grad_norm": 1.0, "by_source": {"hh": {"loss": 1}}} for k in range(1, 9)]
    samples = [sample("p", "a")]
    html = run_page(MANIFEST | {"steps": 8, "seconds": 75.0}, metrics, evaluated(0.5, 0.7), samples)
    Page(html)
    assert "qwen trained by the rule <b>dpo</b> on 20261122T1-5f for 8 steps in 75.0 s" in html
    assert all(f'id="{section}"' in html for section in ("evaluation", "curves", "samples", "settings"))
    bare = run_page(MANIFEST, [], None, None)
    Page(bare)
    assert not any(f'id="{section}"' in bare for section in ("evaluation", "curves", "samples"))


def test_an_empty_manifest_is_a_page():
    Page(run_page({}, [], {}, []))


def test_a_measure_has_a_line_overall_and_one_per_group():
    (found,) = measures(evaluated(0.5, 0.7, group="math"))
    overall, category = found.lines
    assert found.share and (overall.group, category.group) == (None, "math") and overall.n == 50
    assert overall.before and overall.after and overall.difference
    assert (overall.before.value, overall.after.value) == (0.5, 0.7)
    assert found.low < 0.4 and found.high > 0.8


def test_the_scale_of_a_share_ends_where_shares_end():
    shares = {
        "measures": [
            {
                "name": "accuracy",
                "share": True,
                "lines": [{"group": None, "n": 9, "after": {"value": 1.0, "low": 0.4, "high": 1.0}}],
            }
        ]
    }
    (found,) = measures(shares)
    assert (found.low, found.high) == (0.4 - 0.05 * 0.6, 1.0)


def test_the_terminal_shows_the_same_figures():
    lines = text_lines(evaluated(0.5, 0.7, group="math"))
    assert any(line.startswith("all (50)") and "0.500 [0.400, 0.600]" in line and "+0.200" in line for line in lines)


def test_usual_curves_come_first_and_counters_are_none():
    metrics = [{"step": k, "epoch": k, "zeta": 1.0, "learning_rate": 1.0, "loss": 2.0, "ok": True} for k in range(3)]
    assert [curve.title for curve in curves(metrics)] == ["loss", "learning_rate", "zeta"]


def test_values_that_are_not_finite_are_counted_and_not_drawn():
    (curve,) = curves([{"step": 1, "loss": 1.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": math.inf}])
    assert curve.broken == 2 and "nan" not in curve.path and (curve.low, curve.high) == (1.0, 1.0)
    Page(run_page({}, [{"step": 1, "loss": math.nan}, {"step": 2, "loss": 1.0}], None, None))


def test_a_long_run_is_a_small_page_that_keeps_its_spikes():
    metrics = [{"step": k, **{f"m{j}": math.sin(k + j) for j in range(20)}} for k in range(20_000)]
    metrics[12_345]["m0"] = 99.0
    html = run_page({}, metrics, None, None)
    assert len(html.encode()) < 300_000 and "highest 99" in html
    points = [(float(k), 99.0 if k == 777 else 0.0) for k in range(5000)]
    assert len(thin(points)) <= 482 and (777.0, 99.0) in thin(points)


def test_a_running_mean_of_a_constant_is_the_constant():
    assert {y for _, y in smoothed([(float(k), 0.5) for k in range(500)])} == {0.5}


def test_ticks_are_round():
    assert ticks(0, 1, 4) == [0, 0.5, 1]
    assert ticks(3, 1200, 5) == [500, 1000]


def test_hostile_text_is_text_in_a_run_too():
    evaluation = evaluated(0.5, 0.7, group=HOSTILE)
    samples = [sample(HOSTILE, HOSTILE * 999)] * 20
    html = run_page({"rule": HOSTILE, HOSTILE: [HOSTILE]}, [{"step": 1, HOSTILE: 1.0}], evaluation, samples)
    Page(html)
    assert len(html.encode()) < 300_000 and "And 12 more" in html


def test_the_same_run_gives_the_same_bytes():
    metrics = [{"step": k, "loss": 1.0 / (k + 1)} for k in range(900)]
    pages = {run_page(MANIFEST, metrics, evaluated(0.5, 0.7), [sample("p", "a")]) for _ in range(2)}
    assert len(pages) == 1


def test_a_reward_models_reliability_is_a_picture_with_its_table():
    bins = [
        {"low": 0.5, "high": 0.55, "n": 4, "confidence": 0.5, "accuracy": 0.25},
        {"low": 0.95, "high": 1.0, "n": 16, "confidence": 1.0, "accuracy": 1.0},
    ]
    evaluation = evaluated(0.5, 0.7) | {"calibration": [{"group": None, "n": 20, "bins": bins}]}
    html = run_page(MANIFEST, [], evaluation, None)
    Page(html)
    assert 'id="reliability"' in html and 'id="reliability"' not in run_page(MANIFEST, [], evaluated(0.5, 0.7), None)
    drawn = picture(evaluation)
    assert drawn is not None and drawn.least == 0.0
    assert [(b.x, b.y) for b in drawn.bins] == [(LEFT, BOTTOM - 0.25 * (BOTTOM - TOP)), (RIGHT, TOP)]
    assert drawn.bins[1].radius - 3 == 2 * (drawn.bins[0].radius - 3)


def test_every_section_of_a_page_is_in_its_navigation():
    bins = [{"low": 0.5, "high": 0.55, "n": 4, "confidence": 0.5, "accuracy": 0.25}]
    evaluation = evaluated(0.5, 0.7) | {"calibration": [{"group": None, "n": 4, "bins": bins}]}
    line = {"step": 1, "loss": 1.0, "by_source": {"hh": {"loss": 1.0}}, "blend": {"texts": {"loss": 2.0}}}
    rounds = [
        {
            "round": 1,
            "prompts": 8,
            "answers": 32,
            "distinct": 30,
            "reward": 0.2,
            "steps": 4,
            "loss": 0.5,
            "snapshot": "s",
        }
    ]
    html = run_page(MANIFEST | {"rounds": rounds}, [line], evaluation, [sample("p", "a")])
    Page(html)
    sections = re.findall(r'<section id="(\w+)"', html)
    assert sections == re.findall(r'<a href="#(\w+)">', html[: html.index("</nav>")])
    assert len(sections) == 8


def test_a_table_that_is_blended_in_has_curves_of_its_own():
    def line(k: int) -> dict:
        return {"step": k, "loss": 1.0, "blend": {"texts": {"loss": 2.0 * k, "rows": 4, "coefficient": 0.5}}}

    metrics = [line(k) for k in range(1, 5)]
    (found,) = blended(metrics)
    assert (found["name"], found["coefficient"]) == ("texts", 0.5)
    assert [(curve.title, curve.x_name, curve.first, curve.last) for curve in found["curves"]] == [
        ("loss", "step", 2.0, 8.0)
    ]
    assert blended([{"step": 1, "loss": 1.0}]) == []


def test_sources_and_categories_have_a_line_each_of_the_last_tenth_of_the_steps():
    def parts(k: int) -> dict:
        return {"hh": {"loss": float(k), "rows": 3}, "uf": {"loss": 1.0, "w_ess": 0.5, "rows": 1}}

    metrics = [{"step": k, "loss": 1.0, "by_source": parts(k)} for k in range(1, 21)]
    (found,) = groups(metrics)
    assert found["title"] == "source" and found["columns"] == ["loss", "w_ess"]
    assert found["lines"] == [("hh", 60, [19.5, None]), ("uf", 20, [1.0, 0.5])]
    html = run_page(MANIFEST, metrics, None, None)
    Page(html)
    assert '<section id="groups">' in html and groups([{"step": 1, "loss": 1.0}]) == []


def test_rounds_are_a_table():
    one = {
        "round": 1,
        "prompts": 8,
        "answers": 32,
        "distinct": 30,
        "reward": 0.25,
        "steps": 4,
        "loss": 0.5,
        "snapshot": "s",
    }
    html = run_page(MANIFEST | {"rounds": [one, one | {"round": 2, "reward": None}]}, [], None, None)
    Page(html)
    assert '<section id="rounds">' in html and "0.250" in html
