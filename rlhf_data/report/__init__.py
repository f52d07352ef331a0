"""What people read: a page per snapshot, a page per training run, one that compares rules, and the dataset card."""

from rlhf_data.report.readme import card
from rlhf_data.report.run import run_page
from rlhf_data.report.snapshot import snapshot_page
from rlhf_data.report.weights import weights_page

__all__ = ["card", "run_page", "snapshot_page", "weights_page"]
