"""A request that raises at any stage fails alone: its neighbors' answers are those of a batch without it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from threading import Thread
from typing import Any

import pytest
from pydantic import ValidationError

from models.message import JobMessage
from models.model_defaults import ModelDefaults
from models.params import GenerationParams
from tests.conftest import TOY_MODEL
from tests.support.processes import HANG_SECONDS
from tests.support.random_models import altered
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.model_loader import LoadedModel, load_model
from worker.engine.request import EngineError, RequestOutput
from worker.engine.sampling.batch_sampler import launch_sample_batch, sample_batch
from worker.engine.sampling_row import rules_of
from worker.engine_process.loop import serve as serve_loop
from worker.engine_process.protocol import Encoding, Finished, Started, Stop, Submit

POISON = 99

#: The first id that the toy model does not have.
LACKING = 1024

NEIGHBORS: list[dict[str, Any]] = [
    {},
    {"strategy": "sample", "n": 2, "top_logprobs": 2},
    {"strategy": "nucleus", "top_p": 0.8, "stop": ["the"]},
    {"strategy": "beam", "num_beams": 3, "num_return": 2},
    {"repetition_penalty": 1.2},
    {"trace": "none"},
]


@pytest.fixture(scope="module")
def toy() -> LoadedModel:
    return load_model(str(TOY_MODEL), "cpu", "float32")


@pytest.fixture(params=["own sampler", "rows", "batch", "ahead"])
def sampled(request: pytest.FixtureRequest, toy: LoadedModel) -> LoadedModel:
    """The toy model with each of the samplers."""
    parts: dict[str, dict[str, Any]] = {
        "own sampler": {},
        "rows": {"sample_batch": None},
        "batch": {"sample_batch": sample_batch},
        "ahead": {"launch_sample_batch": launch_sample_batch},
    }
    return altered(toy, **parts[request.param])


def params_of(number: int, **given: Any) -> GenerationParams:
    return GenerationParams.model_validate({"max_new_tokens": 8, "seed": number, **given})


def neighbors() -> list[JobMessage]:
    return [
        JobMessage(id=number, prompt=f"Story {number} about a hedgehog", params=params_of(number, **given))
        for number, given in enumerate(NEIGHBORS)
    ]


def engine_of(loaded: LoadedModel) -> Engine:
    return Engine(loaded, EngineConfig(max_num_seqs=16, kv_memory=0.02))


def serve(engine: Engine, jobs: Sequence[JobMessage]) -> tuple[dict[int, RequestOutput], list[object]]:
    """The outputs of the jobs from the engine process's own loop, and all that it said."""
    ours, theirs = Pipe()
    loop = Thread(target=serve_loop, args=(theirs, engine, HANG_SECONDS), daemon=True)
    ours.send(Submit(tuple(jobs), priority=5))
    ours.send(Stop())
    loop.start()
    said: list[object] = []
    while loop.is_alive() or ours.poll():
        if ours.poll(0.02):
            said.append(ours.recv())
    outputs = {output.request_id: output for each in said if isinstance(each, Finished) for output in each.outputs}
    return outputs, said


def answers(outputs: dict[int, RequestOutput]) -> dict[int, Any]:
    return {number: (output.completions, output.hypotheses) for number, output in outputs.items() if number != POISON}


_undisturbed: dict[int, Any] = {}


def undisturbed(loaded: LoadedModel) -> Any:
    """The neighbors' answers without any poison, decoded once for each model."""
    key = id(loaded.model)
    if key not in _undisturbed:
        healthy, _ = serve(engine_of(loaded), neighbors())
        assert all(output.error is None for output in healthy.values())
        _undisturbed[key] = (answers(healthy), loaded)  # kept, so that no other one gets its id
    return _undisturbed[key][0]


def failure_beside_neighbors(loaded: LoadedModel, poison: JobMessage, spoil: Callable[[Engine], None]) -> RequestOutput:
    """The poison's output; its neighbors, before and after it, must answer as they do without it."""
    engine = engine_of(loaded)
    spoil(engine)
    jobs = neighbors()
    found, _ = serve(engine, [*jobs[:3], poison, *jobs[3:]])
    assert answers(found) == undisturbed(loaded)
    assert engine.scheduler.blocks.num_in_use == 0 and not engine.has_work
    return found[POISON]


def nothing(engine: Engine) -> None:
    """Spoils nothing: the request itself is enough."""


CALL = {"function": {"name": "weather", "arguments": '["not", "an", "object"]'}}

#: Template code that raises, and the error.
TEMPLATES = {
    "{% for name in messages[0].tool_calls[0].function.arguments|items %}{% endfor %}": "TypeError: Can only get",
    "{{ 1 / 0 }}": "ZeroDivisionError: division by zero",
    "{{ messages[0].content.missing.deeper }}": "UndefinedError: ",
    "{{ 'a' * 10 ** 18 }}": "takes more than 512 MiB of memory",
    "{{ range(10 ** 9) }}": "OverflowError: ",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "RecursionError: ",
    "{{ raise_exception('no such role\\n\\0here') }}": "TemplateError: no such role \ufffdhere",
    "{{ raise_exception('half a pair: \\ud800') }}": "TemplateError: half a pair: ?",
    "{% endif %}": "TemplateSyntaxError: ",
    "{{ messages[0].content + 1 }}": "TypeError: ",
    "{{ messages.clear() }}": "SecurityError: ",
}


@pytest.mark.parametrize(("code", "error"), TEMPLATES.items())
def test_whatever_a_chat_template_raises(toy: LoadedModel, code: str, error: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(toy.tokenizer, "chat_template", code)
    message = {"role": "user", "content": "Hello", "tool_calls": [CALL]}
    output = failure_beside_neighbors(toy, JobMessage(id=POISON, messages=[message], params=params_of(1)), nothing)
    assert output.error is not None and output.error.code == "InvalidRequest"
    refused = "" if error.startswith("takes ") else "refuses it: "
    assert str(output.error).startswith(f"the chat template {refused}{error}")


@pytest.mark.parametrize("kind", [EngineError, *EngineError.__subclasses__()], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("part", ["\0", "\ud800", "\udfff\ud800"], ids=ascii)
def test_every_database_holds_the_message_of_an_error(kind: type[EngineError], part: str) -> None:
    """A worker that cannot store an error ends, and so does the next one that gets the job."""
    error = kind(f"a{part}b")
    message = str(pickle.loads(pickle.dumps(error)))
    message.encode()
    assert message == str(error) and "\0" not in message and message.startswith("a") and message.endswith("b")


def test_several_templates_without_a_default(toy: LoadedModel, monkeypatch: Any) -> None:
    monkeypatch.setattr(toy.tokenizer, "chat_template", {"tool_use": "t", "rag": "r"})
    job = JobMessage(id=POISON, messages=[{"role": "user", "content": "Hello"}], params=params_of(1))
    output = failure_beside_neighbors(toy, job, nothing)
    assert output.error is not None and output.error.code == "InvalidRequest"
    assert "several chat templates and none is the default: rag, tool_use" in str(output.error)


class PanicException(BaseException):
    """The class of a panic in Rust code, as PyO3 names it."""


class Unprintable(Exception):
    """Its message raises."""

    def __str__(self) -> str:
        raise TypeError


ERRORS = [
    TypeError("no"),
    Unprintable(),
    KeyError("k"),
    RecursionError(),
    MemoryError(),
    UnicodeError("\ud800"),
    PanicException("at 7"),
]
JOB = JobMessage(id=POISON, prompt="poison", params=params_of(1))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_the_tokenizer_raises(toy: LoadedModel, error: BaseException) -> None:
    def spoil(engine: Engine) -> None:
        encode = engine.loaded.tokenizer

        def tokenizer(text: str, **options: Any) -> Any:
            if text == "poison":
                raise error
            return encode(text, **options)

        engine.loaded = altered_tokenizer(engine.loaded, tokenizer)

    output = failure_beside_neighbors(toy, JOB, spoil)
    assert output.error is not None and output.error.code == "InvalidRequest"
    assert str(output.error).startswith(f"the prompt cannot be tokenized: {type(error).__name__}")
    str(output.error).encode()


def test_a_prompt_that_only_its_tokenizer_takes(toy: LoadedModel) -> None:
    """Tokenizers in Python take half a surrogate pair, of a chat template for example; databases do not."""

    def lenient(text: str, **options: Any) -> Any:
        return toy.tokenizer(text.encode(errors="replace").decode(), **options)

    job = JobMessage(id=POISON, prompt="half a pair: \ud800", params=params_of(1, keep_prompt=True))
    engine = engine_of(toy)
    engine.loaded = altered_tokenizer(toy, lenient)
    (output,) = serve(engine, [job])[0].values()
    assert output.error is None and output.prompt_text == "half a pair: ?"


@pytest.mark.parametrize("ids", [[1.5], [5.0], ["5"], [None], [[5, 6]], [-1], [2**70], None], ids=str)
def test_ids_that_are_none(toy: LoadedModel, ids: Any) -> None:
    """No embedding has them."""

    def spoil(engine: Engine) -> None:
        encode = engine.loaded.tokenizer

        def tokenizer(text: str, **options: Any) -> Any:
            return {"input_ids": ids} if text == "poison" else encode(text, **options)

        engine.loaded = altered_tokenizer(engine.loaded, tokenizer)

    output = failure_beside_neighbors(toy, JOB, spoil)
    assert output.error is not None and output.error.code == "InvalidRequest"


def altered_tokenizer(loaded: LoadedModel, tokenizer: Any) -> LoadedModel:
    return LoadedModel(loaded.limits, loaded.config, tokenizer, loaded.model)


#: Requests that raise or are refused as they are, and their errors.
REQUESTS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"prompt": "half a pair: \ud800"}, {}, "the prompt cannot be tokenized: TypeError"),
    ({"prompt": ""}, {}, "the prompt has no tokens"),
    ({"messages": [{"role": "user"}]}, {}, "the chat template refuses it: "),
    *[
        ({"prompt": "x"}, {"logit_bias": {5: 1e300}, "strategy": strategy}, "the bias 1e+300 of token 5 is beyond fp32")
        for strategy in ("greedy", "sample", "nucleus", "beam")
    ],
    (
        {"prompt": "x"},
        {"eos_token_ids": [7] * 5000, "strategy": "beam", "num_beams": 2},
        "token 1 of the answer cannot",
    ),
    ({"prompt": "x"}, {"strategy": "beam", "num_beams": 2, "length_penalty": 1e308}, "token 2 of the answer"),
    (
        {"prompt": "x"},
        {"strategy": "beam", "num_beams": 2, "length_penalty": -1e308},
        "the scores of its beams",
    ),
]


@pytest.mark.parametrize(("job", "params", "error"), REQUESTS, ids=lambda value: str(value)[:40])
def test_requests_of_the_world(toy: LoadedModel, job: dict[str, Any], params: dict[str, Any], error: str) -> None:
    output = failure_beside_neighbors(toy, JobMessage(id=POISON, params=params_of(1, **params), **job), nothing)
    assert output.error is not None and output.error.code == "InvalidRequest"
    assert str(output.error).startswith(error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["at the end", "before a token", "at a token", "in the text"])
def test_whatever_the_detokenizer_raises(toy: LoadedModel, error: BaseException, place: str) -> None:
    """At the end of the answer, or before it where stop strings are looked for."""
    stop = [] if place == "at the end" else ["a stop string"]
    job = JOB.model_copy(update={"params": params_of(1, ignore_eos=True, stop=stop)})

    def fail(*_: Any) -> Any:
        raise error

    def spoil(engine: Engine) -> None:
        poison_ids, healthy = engine.encode("poison"), engine.detokenizer
        assert healthy is not None
        name = "stream" if stop else "pieces"
        decode = getattr(healthy, name)

        def spoiled(*arguments: Any) -> Any:
            if poison_ids not in arguments:
                return decode(*arguments)
            if place in ("at the end", "before a token"):
                raise error
            stream = decode(*arguments)
            stream.may_show = fail if place == "at a token" else lambda *_: True
            stream.append = fail
            return stream

        setattr(healthy, name, spoiled)

    output = failure_beside_neighbors(toy, job, spoil)
    assert output.error is not None and output.error.code == "InvalidRequest"
    assert str(output.error).startswith("the answer cannot be detokenized")
    assert type(error).__name__ in str(output.error)


def test_a_choice_that_cannot_be_sampled(sampled: LoadedModel) -> None:
    """A ban of every token leaves no distribution to draw from: with each sampler the request fails, and it alone."""
    banned = ModelDefaults(suppress_tokens=tuple(range(sampled.limits.vocab_size)))
    params = params_of(1, strategy="sample").with_model_defaults(banned)
    output = failure_beside_neighbors(sampled, JOB.model_copy(update={"params": params}), nothing)
    assert output.error is not None and output.error.code == "InvalidRequest"
    assert str(output.error).startswith("token 1 of the answer cannot be sampled")


#: Defaults of a model that name a token which it lacks, or that leave no number of fp32.
DEFAULTS: list[tuple[dict[str, Any], str]] = [
    ({"sequence_bias": (((LACKING,), 1.0),)}, f"token id {LACKING} is not in the vocabulary"),
    ({"sequence_bias": (((2**31 - 1,), 1.0),)}, f"token id {2**31 - 1} is not in the vocabulary"),
    ({"sequence_bias": (((1, LACKING), 1.0),)}, f"token id {LACKING} is not in the vocabulary"),
    ({"bad_words_ids": ((LACKING,),)}, f"token id {LACKING} is not in the vocabulary"),
    ({"forced_bos_token_id": LACKING}, f"token id {LACKING} is not in the vocabulary"),
    ({"forced_eos_token_id": (2, LACKING)}, f"token id {LACKING} is not in the vocabulary"),
    ({"sequence_bias": (((5,), 1e300),)}, "the bias 1e+300 of token 5 is beyond fp32"),
]


@pytest.mark.parametrize(("defaults", "error"), DEFAULTS, ids=lambda value: str(value)[:50])
def test_defaults_that_a_model_does_not_have(sampled: LoadedModel, defaults: dict[str, Any], error: str) -> None:
    """The job fails before it is sampled, so that all samplers say the same."""
    params = params_of(1).with_model_defaults(ModelDefaults.model_validate(defaults))
    output = failure_beside_neighbors(sampled, JOB.model_copy(update={"params": params}), nothing)
    assert output.error is not None and output.error.code == "InvalidRequest"
    assert str(output.error).startswith(error)


@pytest.mark.parametrize("kind", ["suppress_tokens", "begin_suppress_tokens", "eos_token_ids"])
@pytest.mark.parametrize("token_id", [LACKING, 2**31 - 1])
def test_bans_of_tokens_that_never_come(sampled: LoadedModel, kind: str, token_id: int) -> None:
    """As in Transformers, they change nothing."""
    defaults = ModelDefaults.model_validate({kind: (token_id,)})
    params = params_of(1, min_new_tokens=2).with_model_defaults(defaults)
    output = failure_beside_neighbors(sampled, JOB.model_copy(update={"params": params}), nothing)
    assert output.error is None


@pytest.mark.parametrize("top_k", [2**31 - 1, 2**31, 2**32 + 1, 2**64, 10**30])
def test_a_top_k_beyond_all_integers_keeps_every_token(sampled: LoadedModel, top_k: int) -> None:
    def answer(**given: Any) -> Any:
        job = JOB.model_copy(update={"params": params_of(1, strategy="sample", **given)})
        (output,) = serve(engine_of(sampled), [job])[0].values()
        return output.error, [done.token_ids for done in output.completions]

    assert answer(top_k=top_k) == answer()


@pytest.mark.parametrize("number", [2**31, 2**63, 10**30])
def test_rules_are_numbers_that_every_sampler_holds(number: int) -> None:
    """C has 64 bits for them, a GPU's table 32."""
    params = params_of(1, strategy="sample", top_k=number).with_model_defaults(ModelDefaults(min_length=number))
    rules = rules_of(params, 3, (2,))
    assert rules.top_k < 2**31 and rules.min_new_tokens < 2**31
    for name in ("suppress_tokens", "eos_token_ids", "begin_suppress_tokens", "forced_eos_token_id"):
        with pytest.raises(ValidationError, match="less than"):
            ModelDefaults.model_validate({name: (number,)})


def test_prompt_tokens_that_the_embedding_does_not_have(toy: LoadedModel) -> None:
    """30 jobs with a token that the tokenizer knows and the model does not: each is refused by its name and id."""
    tokenizer = copy.deepcopy(toy.tokenizer)
    tokenizer.add_tokens(["<|extra|>"])
    vocab = toy.limits.vocab_size
    jobs = [JobMessage(id=number, prompt="about <|extra|>", params=params_of(number)) for number in range(30)]
    outputs, said = serve(engine_of(altered_tokenizer(toy, tokenizer)), jobs)
    assert len(outputs) == 30 and not any(isinstance(each, Started) for each in said)
    for output in outputs.values():
        assert output.error is not None and output.error.code == "InvalidRequest"
        assert f"the prompt has token id {vocab} ('<|extra|>')" in str(output.error)
        assert f"has only {vocab}" in str(output.error)


def test_each_job_is_reported_before_it_is_encoded(toy: LoadedModel) -> None:
    jobs = neighbors()
    _, said = serve(engine_of(toy), jobs)
    assert [each.job_id for each in said if isinstance(each, Encoding)] == [*(job.id for job in jobs), None]
