"""Feedback data in, weighted preference tables and trained policies out."""
