"""Runs on disk: which segments exist, which are missing, and who runs the missing ones."""
