"""As in a notebook: an answer and a conversation in a line, short reprs, errors that say what is wanted."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

import llama3_scratch as l3
from llama3_scratch import generate
from llama3_scratch.checkpoint.gguf_out import write_gguf
from llama3_scratch.checkpoint.hf_out import write_hf
from llama3_scratch.checkpoint.meta import write_meta
from llama3_scratch.errors import UsageError
from llama3_scratch.tied import tie
from llama3_scratch.training.choices import TrainingPlan
from llama3_scratch.training.loop import Training
from tests import tiny

SETTINGS = [
    {},
    {"max_tokens": 30, "system": "Be brief."},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.8, "seed": 7},
    {"raw": True, "stop": ["e", "a"], "kv_bits": 8},
]


@pytest.fixture(scope="module")
def ck(tmp_path_factory):
    return l3.load(tiny.folder(tmp_path_factory.mktemp("chats")))


@pytest.mark.parametrize("settings", SETTINGS)
def test_an_answer_is_what_generate_prints(ck, settings, capsys):
    settings = {"max_tokens": 12, "seed": 1, **settings}
    argv = ["hello", "--model", str(ck.path)]
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        each = value if isinstance(value, list) else [value]
        argv += [flag] if value is True else [part for one in each for part in (flag, str(one))]
    assert generate.main(argv) == 0
    printed = capsys.readouterr().out
    assert l3.answer(ck, "hello", **settings) + "\n" == printed
    pieces = list(l3.stream_answer(ck, "hello", **settings))
    assert "".join(pieces) + "\n" == printed and all(pieces)


def test_a_conversation_remembers_and_computes_only_what_is_new(ck):
    talk = l3.Talk(ck, system="Be brief.", temperature=0, max_tokens=9)
    first, second = talk.say("hi"), "".join(talk.reply("and then?"))
    assert [message["content"] for message in talk.messages] == ["hi", first, "and then?", second]
    assert repr(talk) == f"Talk({ck.path.name}, 4 messages, {talk.n_cached} tokens in the cache)"
    again = l3.Talk(ck, system="Be brief.", temperature=0, max_tokens=9)
    assert [again.say("hi"), again.say("and then?")] == [first, second]
    assert talk.timings.prompt_tokens < 60 < talk.n_cached, "the first turn isn't computed again"


def test_an_answer_in_a_thread_and_after_one_that_failed(ck):
    with pytest.raises(UsageError, match=r"the prompt is empty|the user's message is empty"):
        l3.answer(ck, "")
    answers = []
    thread = threading.Thread(target=lambda: answers.append(l3.answer(ck, "hi", max_tokens=5)))
    thread.start()
    thread.join()
    assert answers == [l3.answer(ck, "hi", max_tokens=5)]


BAD = {
    "misspelt": ({"temprature": 1}, "no setting temprature; did you mean temperature"),
    "unknown": ({"xyz": 1}, "no setting xyz; there are system, raw,"),
    "its beginning": ({"temp": 1}, "no setting temp; did you mean temperature"),
    "a stop that is no text": ({"stop": [1]}, r"`stop`: expected a text or several, got \[1\]"),
    "too small": ({"temperature": -1}, "`temperature`: expected a number at least 0, got -1"),
    "not a number": ({"max_tokens": "many"}, "`max_tokens`: expected a whole number at least 1, got 'many'"),
    "none of the choices": ({"kv_bits": 7}, "`kv_bits`: expected one of 16, 8, 4, got 7"),
    "an empty stop": ({"stop": ""}, "got an empty string"),
    "system without a chat": ({"raw": True, "system": "x"}, "a system message goes with a chat"),
}


@pytest.mark.parametrize("settings, message", BAD.values(), ids=BAD)
def test_settings_are_checked_as_options_are(ck, settings, message):
    with pytest.raises(UsageError, match=message):
        l3.answer(ck, "hi", **settings)


def test_what_is_no_checkpoint_and_no_text_is_said(ck):
    for no_model in ("smollm2-135m", ck.params, None):
        with pytest.raises(UsageError, match="expected a Checkpoint, which `load` returns, got"):
            l3.answer(no_model, "hi")
        with pytest.raises(UsageError, match="expected a Checkpoint"):
            l3.Talk(no_model)
    for no_text in (5, None, ["a", "b"]):
        with pytest.raises(UsageError, match="expected a text as the prompt, got"):
            l3.answer(ck, no_text)


def test_an_interrupt_ends_the_cell_and_what_was_said_is_kept(ck, monkeypatch):
    """Swallowed by the conversation it would end one answer of a loop, and the loop go on."""
    from llama3_scratch.inference import stream

    talk, real = l3.Talk(ck, max_tokens=9, temperature=0), stream.stream

    def interrupted(*args, **kwargs):
        for count, step in enumerate(real(*args, **kwargs)):
            if count == 2:
                raise KeyboardInterrupt
            yield step

    with monkeypatch.context() as struck:
        struck.setattr(stream, "stream", interrupted)
        with pytest.raises(KeyboardInterrupt):
            talk.say("hello")
        with pytest.raises(KeyboardInterrupt):
            l3.answer(ck, "hello")
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] and talk.ended is None
    assert isinstance(talk.say("go on"), str) and len(talk.messages) == 4


def test_reprs_are_a_line(ck):
    sizes = f"{ck.config.n_parameters:,} parameters in float32"
    assert repr(ck) == f"Checkpoint({ck.path}: {sizes}, {ck.tokenizer!r})"
    assert repr(ck.tokenizer) == "Tokenizer(258 tokens, 2 of them special, chats in chatml)"
    assert repr(replace(ck, tokenizer=None)).endswith("float32, no tokenizer)")


def test_tab_completion_shows_what_a_person_may_want():
    names = dir(l3)
    assert {"answer", "stream_answer", "Talk", "load", "forward", "linear", "trace", "__doc__"} <= set(names)
    assert not {"importlib", "pkgutil", "annotations", "TYPE_CHECKING", "Any"} & set(names)
    assert all(hasattr(l3, name) for name in ("answer", "load", "trace", "params", "inference"))


def test_text_gets_the_bos_that_its_model_wants():
    for chat_format, bos in (("llama3", True), ("chatml", False)):
        tokenizer = tiny.tokenizer(chat_format)
        assert tokenizer.encode("hi") == tokenizer.encode("hi", bos=bos, eos=False)
        assert tokenizer.encode("hi", bos=False) == tokenizer.encode("hi", bos=False, eos=False)


PARAMS = tiny.params()


@pytest.mark.parametrize(
    "tokens", [[3, 5, 7], [[3, 5, 7]], (3, 5, 7), torch.tensor([3, 5, 7]), torch.tensor([3, 5, 7], dtype=torch.int32)]
)
def test_forward_takes_lists_and_one_axis(tokens):
    wanted_BTV = l3.forward(torch.tensor([[3, 5, 7]]), PARAMS, tiny.CONFIG)
    assert torch.equal(l3.forward(tokens, PARAMS, tiny.CONFIG), wanted_BTV)


NO_IDS = {
    "text": ("hello", "expected token ids, in lists of equal lengths, got 'hello'; text goes through the tokenizer's"),
    "ragged": ([[1, 2], [3]], "in lists of equal lengths"),
    "floats": (torch.tensor([1.0]), r"in int64 or int32, of one axis or two, got torch.float32 \[1\]"),
    "floats in a list": ([1.5, 2.0], "got torch.float32"),
    "booleans": ([True, False], "got torch.bool"),
    "three axes": (torch.zeros(1, 1, 1, dtype=torch.long), r"of one axis or two, got torch.int64 \[1, 1, 1\]"),
    "a number": (torch.tensor(3), r"got torch.int64 \[\]"),
    "too large": (torch.tensor([[1, 67]]), "token id 67, expected 0 to 66"),
    "negative": ([-1], "token id -1, expected 0 to 66"),
    "elsewhere": (torch.zeros(1, 2, dtype=torch.long, device="meta"), "the tokens are on meta, the model is on cpu"),
}


@pytest.mark.parametrize("tokens, message", NO_IDS.values(), ids=NO_IDS)
def test_what_are_no_ids_is_said(tokens, message):
    with pytest.raises(UsageError, match=message):
        l3.forward(tokens, PARAMS, tiny.CONFIG)


TIED = replace(tiny.CONFIG, tied=True)


def copied(change) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    params = PARAMS | {"output.weight": PARAMS["tok_embeddings.weight"]}
    return params, {name: change(name, tensor) for name, tensor in params.items()}


def test_a_tied_head_that_a_copy_parted_is_told(recwarn):
    params, clones = copied(lambda name, tensor: tensor.clone())
    l3.forward([1, 2], params, TIED)
    l3.forward([1, 2], dict(params), TIED)
    l3.forward([1, 2], PARAMS, tiny.CONFIG)
    assert not recwarn
    with pytest.warns(UserWarning, match=r"tied to the embedding, but their weights are two.*ties them"):
        l3.forward([1, 2], clones, TIED)
    tied = tie(clones, TIED)
    assert tied["output.weight"] is tied["tok_embeddings.weight"] is clones["tok_embeddings.weight"]
    assert tie(params, TIED) is params and tie(PARAMS, tiny.CONFIG) is PARAMS


class _NoBatches:
    fingerprint = "none"


def test_copies_learn_as_one_and_what_differs_is_refused():
    _, clones = copied(lambda name, tensor: tensor.clone())
    names = ["tok_embeddings.weight", "output.weight"]
    training = Training(clones, TIED, names, _NoBatches(), TrainingPlan(steps=1, lr=1e-3))
    assert training.params["output.weight"] is training.params["tok_embeddings.weight"]
    _, other = copied(lambda name, tensor: tensor * 2 if name == "tok_embeddings.weight" else tensor)
    with pytest.raises(
        UsageError, match=r"output\.weight differs from its; .*replace\(config, tied=False\) parts them"
    ):
        Training(other, TIED, names, _NoBatches(), TrainingPlan(steps=1, lr=1e-3))


def test_a_head_that_would_be_lost_is_not_written(tmp_path):
    _, other = copied(lambda name, tensor: tensor * 2 if name == "tok_embeddings.weight" else tensor)
    for write in (write_meta, write_hf):
        with pytest.raises(UsageError, match=r"output\.weight differs from its"):
            write(tmp_path / "model", other, TIED, None)
    with pytest.raises(UsageError, match=r"output\.weight differs from its"):
        write_gguf(tmp_path / "model.gguf", other, TIED, None, kind="F32")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["raw", "raw_special"])
def test_a_talk_always_has_a_frame(name, ck):
    with pytest.raises(UsageError, match=f"no setting {name}; there are system, date,"):
        l3.Talk(ck, **{name: True})
