"""What people read: a page per snapshot, per difference of two, per run, one that compares rules, and the card."""

from rlhf_data.report.diff import diff_page
from rlhf_data.report.facts import narrow, shown_first
from rlhf_data.report.readme import card
from rlhf_data.report.run import run_page
from rlhf_data.report.snapshot import snapshot_page
from rlhf_data.report.weights import weights_page

__all__ = ["card", "diff_page", "narrow", "run_page", "shown_first", "snapshot_page", "weights_page"]
