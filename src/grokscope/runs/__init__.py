"""Runs on disk: which segments exist, which are missing, and how the missing ones get done."""
