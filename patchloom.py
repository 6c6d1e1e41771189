"""Patchloom's front door."""
