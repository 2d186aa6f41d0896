"""Dialects: each parses its wire, asks one service, shapes the answer."""
