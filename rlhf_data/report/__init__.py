"""What people read: a page per snapshot, a page per training run, and the dataset card."""

from rlhf_data.report.readme import card
from rlhf_data.report.run import run_page
from rlhf_data.report.snapshot import snapshot_page

__all__ = ["card", "run_page", "snapshot_page"]
