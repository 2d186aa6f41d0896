from tests.named_adapters import BASE_NAME, names


def test_names_are_unlike_each_other_and_the_same_every_time() -> None:
    found = names(100)
    assert found == names(100) and len(set(found)) == 100
    alike = [
        (one, other)
        for place, one in enumerate([BASE_NAME, *found])
        for other in found[place:]
        if sum(a == b for a, b in zip(one, other, strict=True)) > 2
    ]
    assert not alike
