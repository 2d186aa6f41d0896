"""Every serving backend keeps the promises of the contract."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from luthier.chat.messages import Conversation, Message
from luthier.chat.renderers.base import Renderer, renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import InternalError, NotOffered
from luthier.nets.loading import weights_sha256
from luthier.nets.tokens import Guide, Token
from luthier.serving import engines
from luthier.serving.backends.base import AdapterUnreadable, Asked, Backend, adapter_folder, backends, load_adapter
from luthier.serving.protocol import AdapterRef, Sampling
from luthier.serving.spec import ReplicaSpec
from luthier.storage import Storage
from luthier.testing import toy_model
from tests import vllm_stand_in
from tests.unit.serving.toys import toy_adapter

GREEDY = Sampling(temperature=0, max_tokens=20)


class House:
    """A storage with a toy model and two adapters, and one backend open over it."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.name = backend
        self.storage = Storage(folder.as_uri())
        model = toy_model(folder / "models/toy")
        self.refs = [toy_adapter(folder, f"ckpt-{n}", seed=n) for n in (1, 2)]
        self.renderer: Renderer = renderer_for(Tokenizer(model))
        options = {"self_check": False} if backend == "vllm" else {}  # what stands in for it has not read the weights
        spec = ReplicaSpec(
            replica="rep-1", base_model="toy", weights="models/toy", weights_sha256=weights_sha256(model),
            backend=backend, options=options, precision="fp32", threads=1, adapters=2, listen="",
        )  # fmt: skip
        self.backend: Backend = backends.load(backend).open(spec, self.storage)

    def asked(
        self,
        said: str = "hello",
        adapter: str | None = None,
        sampling: Sampling = GREEDY,
        prompt: list[int] | None = None,
        stops: Collection[int] | None = None,
        guide: Guide | None = None,
    ) -> Asked:
        prompt = prompt or self.renderer.prompt(Conversation((Message("user", said),)))
        return Asked(prompt, sampling, self.renderer.stops if stops is None else stops, adapter, guide)

    def tokens(self, *asked: Asked) -> list[list[Token]]:
        """The answers, made beside each other; raises the first error that ends one."""
        for one in asked:
            self.backend.begin(one)
        return self.rest(*asked)

    def rest(self, *asked: Asked) -> list[list[Token]]:
        made: dict[Asked, list[Token]] = {one: [] for one in asked}
        running = set(asked)
        while running:
            for said in self.backend.step():
                if said.error is not None:
                    raise said.error
                if said.token is not None:
                    made[said.asked].append(said.token)
                if said.is_last:
                    running.discard(said.asked)
        return list(made.values())

    def ids(self, *given: Any, **named: Any) -> list[int]:
        return [token.id for token in self.tokens(self.asked(*given, **named))[0]]


@pytest.fixture(scope="module", params=backends.names())
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    engines_folder = tmp_path_factory.mktemp("engines")
    vllm_stand_in.install(engines_folder)
    engines.use(engines_folder)
    house = House(tmp_path_factory.mktemp("house"), request.param)
    yield house
    house.backend.close()


@pytest.fixture
def adapters(house: House):
    for ref in house.refs:
        load_adapter(house.backend, house.storage, ref)
    yield [ref.id for ref in house.refs]
    for ref in house.refs:
        house.backend.unload_adapter(ref.id)


def test_the_same_request_gives_the_same_tokens(house: House) -> None:
    sampling = Sampling(temperature=1.5, top_p=0.9, seed=3, max_tokens=20)
    assert house.ids(sampling=sampling) == house.ids(sampling=sampling) != []


def test_a_seed_repeats_whatever_runs_beside_it(house: House) -> None:
    sampling = Sampling(temperature=1.3, seed=5, max_tokens=20)
    again, _ = house.tokens(house.asked(sampling=sampling), house.asked("other", sampling=Sampling(max_tokens=20)))
    assert [token.id for token in again] == house.ids(sampling=sampling)


def test_an_answer_is_as_long_as_asked_at_most(house: House) -> None:
    assert len(house.ids(sampling=Sampling(temperature=0, max_tokens=2))) == 2


def test_a_stop_ends_an_answer_and_is_its_last_token(house: House) -> None:
    free = house.ids()
    assert house.ids(stops={free[2]}) == free[: free.index(free[2]) + 1]


def test_adapters_in_one_batch_do_not_mix(house: House, adapters: list[str]) -> None:
    asked = [None, *adapters]
    alone = [house.ids(adapter=adapter) for adapter in asked]
    together = house.tokens(*(house.asked(adapter=adapter) for adapter in asked))
    assert [[token.id for token in tokens] for tokens in together] == alone


def test_one_who_comes_later_joins_the_next_step(house: House) -> None:
    first, later = house.asked(), house.asked("later")
    house.backend.begin(first)
    while not any(said.token for said in house.backend.step()):
        pass
    house.backend.begin(later)
    said = [one for _ in range(2) for one in house.backend.step()]
    while house.name == "vllm" and later not in {one.asked for one in said}:  # its server makes steps of its own
        said += house.backend.step()
    assert {one.asked for one in said if one.token} == {first, later}
    house.rest(*({first, later} - {one.asked for one in said if one.is_last}))


def test_an_adapter_leaves_no_trace(house: House) -> None:
    before = house.ids()
    load_adapter(house.backend, house.storage, house.refs[0])
    house.ids(adapter="ckpt-1")
    house.backend.unload_adapter("ckpt-1")
    assert house.ids() == before


def test_an_adapter_is_read_in_another_thread_while_answers_are_made(house: House) -> None:
    before = house.ids()
    asked = house.asked()
    house.backend.begin(asked)
    with adapter_folder(house.storage, house.refs[0]) as folder, ThreadPoolExecutor(1) as threads:
        reading = threads.submit(house.backend.read_adapter, folder, house.refs[0])
        made = [token.id for token in house.rest(asked)[0]]
        put = reading.result()
    assert made == before
    with pytest.raises(InternalError, match="ckpt-1"):  # it was only read
        house.ids(adapter="ckpt-1")
    put()
    house.ids(adapter="ckpt-1")
    house.backend.unload_adapter("ckpt-1")
    assert house.ids() == before


def test_what_is_not_loaded_is_not_answered_by_something_else(house: House) -> None:
    with pytest.raises(InternalError, match="ckpt-1"):
        house.ids(adapter="ckpt-1")
    load_adapter(house.backend, house.storage, house.refs[0])
    asked = house.asked(adapter="ckpt-1")
    house.backend.begin(asked)
    house.backend.step()
    house.backend.unload_adapter("ckpt-1")
    with pytest.raises(InternalError, match="ckpt-1"):
        house.rest(asked)
    assert house.backend.is_idle


@pytest.mark.parametrize(
    ("change", "said"),
    [({"sha256": "0" * 64}, "not the ones"), ({"key": "adapters/absent"}, "not stored")],
)
def test_altered_or_absent_files_are_refused(house: House, change: dict[str, str], said: str) -> None:
    with pytest.raises(AdapterUnreadable, match=said):
        load_adapter(house.backend, house.storage, AdapterRef(**(house.refs[0].model_dump() | change)))
    load_adapter(house.backend, house.storage, house.refs[0])  # nothing of the first try stands in the way
    house.backend.unload_adapter("ckpt-1")


def test_a_cancelled_answer_is_gone_and_may_be_cancelled_again(house: House, adapters: list[str]) -> None:
    expected = house.ids(adapter=adapters[0])
    dropped = house.asked(adapter=adapters[1])
    house.backend.begin(dropped)
    house.backend.step()
    house.backend.cancel(dropped)
    house.backend.cancel(dropped)
    assert house.backend.is_idle
    assert house.ids(adapter=adapters[0]) == expected


@pytest.mark.parametrize("count", [None, 0, 2])
def test_log_probabilities_are_told_where_they_are_asked_for(house: House, count: int | None) -> None:
    for token in house.tokens(house.asked(sampling=Sampling(temperature=0, max_tokens=3, logprobs=count)))[0]:
        assert (token.logprob is None) == (count is None)
        assert len(token.likeliest) <= (count or 0)
        assert count != 2 or token.likeliest[0] == (token.id, token.logprob)  # greedy takes the likeliest


def test_the_likelihood_of_a_text_is_that_of_generating_it_or_not_told(house: House, adapters: list[str]) -> None:
    prompt = house.renderer.prompt(Conversation((Message("user", "hello"),)))
    for adapter in (None, *adapters):
        [made] = house.tokens(house.asked(adapter=adapter, sampling=Sampling(temperature=0, max_tokens=5, logprobs=0)))
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
    guide = Only(7)
    try:
        assert house.ids(sampling=Sampling(max_tokens=3), guide=guide) == [7, 7, 7] == guide.taken
    except NotOffered:
        assert guide.taken == []
    assert house.backend.is_idle


def test_a_prompt_that_is_no_conversation_is_answered(house: House) -> None:
    for prompt in ([5], [5, 6, 7] * 9):
        assert house.ids(prompt=prompt) != []
