"""Requests and answers that OpenAI's and Zhipu's clients share, one noun a file, and what of them we mean."""

from luthier.api.shapes.wire.base import Deleted, ListPage, Sent, page, unix

__all__ = ["Deleted", "ListPage", "Sent", "page", "unix"]
