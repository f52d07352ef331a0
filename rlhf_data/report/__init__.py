"""What people read: a page per snapshot, per difference of two and per training run, and the dataset card."""

from rlhf_data.report.diff import diff_page
from rlhf_data.report.readme import card
from rlhf_data.report.run import run_page
from rlhf_data.report.snapshot import snapshot_page

__all__ = ["card", "diff_page", "run_page", "snapshot_page"]
