"""Objectives, one file each: what is minimised."""
