"""Uploaded files, and what reading them as data sets found."""
