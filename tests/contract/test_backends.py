"""Every serving backend keeps the promises of the contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.chat.messages import Conversation, Message
from luthier.chat.renderers.base import Renderer, renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import InternalError, NotOffered
from luthier.nets.loading import weights_sha256
from luthier.serving.backends.base import AdapterUnreadable, Backend, backends
from luthier.serving.protocol import AdapterRef, Sampling
from luthier.serving.spec import ReplicaSpec
from luthier.storage import Storage
from luthier.testing import toy_model
from tests.unit.serving.toys import toy_adapter

GREEDY = Sampling(temperature=0, max_tokens=20)


class House:
    """A storage with a toy model and two adapters, and one backend open over it."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.storage = Storage(folder.as_uri())
        model = toy_model(folder / "models/toy")
        self.refs = [toy_adapter(folder, f"ckpt-{n}", seed=n) for n in (1, 2)]
        self.renderer: Renderer = renderer_for(Tokenizer(model))
        spec = ReplicaSpec(
            replica="rep-1", base_model="toy", weights="models/toy", weights_sha256=weights_sha256(model),
            backend=backend, precision="fp32", threads=1, adapters=2, socket="",
        )  # fmt: skip
        self.backend: Backend = backends.load(backend).open(spec, self.storage)

    def steps(self, said: str = "hello", adapter: str | None = None, sampling: Sampling = GREEDY):
        prompt = self.renderer.prompt(Conversation((Message("user", said),)))
        return self.backend.generate(prompt, adapter=adapter, sampling=sampling, stops=self.renderer.stops)

    def ids(self, said: str = "hello", adapter: str | None = None, sampling: Sampling = GREEDY) -> list[int]:
        return [token.id for token in self.steps(said, adapter, sampling)]


@pytest.fixture(scope="module", params=backends.names())
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"), request.param)


@pytest.fixture
def adapters(house: House):
    for ref in house.refs:
        house.backend.load_adapter(ref)
    yield [ref.id for ref in house.refs]
    for ref in house.refs:
        house.backend.unload_adapter(ref.id)


def test_the_same_request_gives_the_same_tokens(house: House) -> None:
    sampling = Sampling(temperature=1.5, top_p=0.9, seed=3, max_tokens=20)
    assert house.ids(sampling=sampling) == house.ids(sampling=sampling) != []


def test_an_answer_is_as_long_as_asked_at_most(house: House) -> None:
    assert len(house.ids(sampling=Sampling(temperature=0, max_tokens=2))) == 2


def test_a_stop_ends_an_answer_and_is_its_last_token(house: House) -> None:
    free = house.ids()
    prompt = house.renderer.prompt(Conversation((Message("user", "hello"),)))
    stopped = house.backend.generate(prompt, adapter=None, sampling=GREEDY, stops={free[2]})
    assert [token.id for token in stopped] == free[: free.index(free[2]) + 1]


def test_adapters_that_take_turns_do_not_mix(house: House, adapters: list[str]) -> None:
    asked = [None, *adapters]
    alone = [house.ids(adapter=adapter) for adapter in asked]
    together = [house.steps(adapter=adapter) for adapter in asked]
    mixed: list[list[int]] = [[] for _ in asked]
    for _ in range(21):
        for steps, tokens in zip(together, mixed, strict=True):
            tokens.extend(token.id for token in [next(steps, None)] if token is not None)
    assert mixed == alone


def test_an_adapter_leaves_no_trace(house: House) -> None:
    before = house.ids()
    house.backend.load_adapter(house.refs[0])
    house.ids(adapter="ckpt-1")
    house.backend.unload_adapter("ckpt-1")
    assert house.ids() == before


def test_what_is_not_loaded_is_not_answered_by_something_else(house: House) -> None:
    with pytest.raises(InternalError, match="ckpt-1"):
        next(house.steps(adapter="ckpt-1"))
    house.backend.load_adapter(house.refs[0])
    steps = house.steps(adapter="ckpt-1")
    next(steps)
    house.backend.unload_adapter("ckpt-1")
    with pytest.raises(InternalError, match="ckpt-1"):
        next(steps)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"sha256": "0" * 64}, "not the ones"), ({"key": "adapters/absent"}, "not stored")],
)
def test_altered_or_absent_files_are_refused(house: House, change: dict[str, str], said: str) -> None:
    with pytest.raises(AdapterUnreadable, match=said):
        house.backend.load_adapter(AdapterRef(**(house.refs[0].model_dump() | change)))
    house.backend.load_adapter(house.refs[0])  # nothing of the first try stands in the way
    house.backend.unload_adapter("ckpt-1")


def test_a_half_read_answer_may_be_dropped(house: House, adapters: list[str]) -> None:
    expected = house.ids(adapter=adapters[0])
    dropped: Callable[[], None] = house.steps(adapter=adapters[1])
    next(dropped)
    dropped.close()
    assert house.ids(adapter=adapters[0]) == expected


@pytest.mark.parametrize("count", [None, 0, 2])
def test_log_probabilities_are_told_where_they_are_asked_for(house: House, count: int | None) -> None:
    for token in house.steps(sampling=Sampling(temperature=0, max_tokens=3, logprobs=count)):
        assert (token.logprob is None) == (count is None)
        assert len(token.likeliest) <= (count or 0)
        assert count != 2 or token.likeliest[0] == (token.id, token.logprob)  # greedy takes the likeliest


def test_the_likelihood_of_a_text_is_that_of_generating_it_or_not_told(house: House, adapters: list[str]) -> None:
    prompt = house.renderer.prompt(Conversation((Message("user", "hello"),)))
    for adapter in (None, *adapters):
        made = list(house.steps(adapter=adapter, sampling=Sampling(temperature=0, max_tokens=5, logprobs=0)))
        try:
            found = house.backend.logprobs([*prompt, *(token.id for token in made)], adapter=adapter)
        except NotOffered:
            return
        assert len(found) == len(prompt) + len(made) - 1
        assert found[-len(made) :] == pytest.approx([token.logprob for token in made], abs=1e-4)


class Only:
    """Allows one token."""

    def __init__(self, token: int) -> None:
        self.bits = (1 << token).to_bytes(40, "little")
        self.taken: list[int] = []

    def allowed(self) -> bytes:
        return self.bits

    def take(self, token: int) -> None:
        self.taken.append(token)


def test_a_guide_is_followed_or_refused(house: House) -> None:
    guide, prompt = Only(7), house.renderer.prompt(Conversation((Message("user", "hello"),)))
    steps = house.backend.generate(
        prompt, adapter=None, sampling=Sampling(max_tokens=3), stops=house.renderer.stops, guide=guide
    )
    try:
        assert [token.id for token in steps] == [7, 7, 7] == guide.taken
    except NotOffered:
        assert guide.taken == []


def test_a_prompt_that_is_no_conversation_is_answered(house: House) -> None:
    for prompt in ([5], [5, 6, 7] * 9):
        steps = house.backend.generate(prompt, adapter=None, sampling=GREEDY, stops=house.renderer.stops)
        assert [token.id for token in steps] != []
