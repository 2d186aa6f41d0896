"""One tree, each class with a code of its own; what is known of a fault travels with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from luthier.core import errors


def below(kind: type[errors.LuthierError]) -> Iterator[type[errors.LuthierError]]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


TREE = [kind for kind in below(errors.LuthierError) if kind.__module__ == errors.__name__]


def test_the_picture_at_the_top_of_the_file_is_the_tree() -> None:
    drawn = errors.__doc__ or ""
    assert [kind.__name__ for kind in TREE if kind.__name__ not in drawn] == []


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in TREE]
    assert len(set(codes)) == len(codes)
    assert all(code.replace("_", "").isalpha() and code.islower() for code in codes)


@pytest.mark.parametrize(
    ("error", "parent", "text", "param"),
    [
        (
            errors.NotFound("No such thing.", hint="Look again."),
            errors.LuthierError,
            "No such thing. Look again.",
            None,
        ),
        (errors.JobNotFound("No such job."), errors.NotFound, "No such job.", None),
        (errors.InvalidParameter("seed", "must be above 0"), errors.InvalidRequest, "seed: must be above 0", "seed"),
        (errors.DatasetInvalid("Bad.", [(3, "no turn")], param="file"), errors.InvalidRequest, "Bad.", "file"),
        (errors.InvalidTransition("No."), errors.Conflict, "No.", None),
        (errors.RunLost("Gone."), errors.RunFailed, "Gone.", None),
    ],
)
def test_an_error_says_what_a_person_should_read(error, parent, text: str, param: str | None) -> None:
    assert isinstance(error, parent)
    assert (error.text, error.param) == (text, param)
