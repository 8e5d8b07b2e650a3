"""`python -m llama3_scratch.generate`, in process: what it prints, where, and with which exit code it refuses."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llama3_scratch import generate
from llama3_scratch.checkpoint.gguf_out import write_gguf
from llama3_scratch.checkpoint.meta import write_meta
from llama3_scratch.inference import stream, timed
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.inference.loading import open_model
from llama3_scratch.native import kernels
from llama3_scratch.params.quantize import quantize
from llama3_scratch.stored import stored
from llama3_scratch.system.timings import Timings
from llama3_scratch.terminal import word_wrap
from llama3_scratch.terminal.printer import Printer
from llama3_scratch.text import detokenizer
from llama3_scratch.text.detokenizer import Detokenizer
from tests import tiny


@pytest.fixture
def run(capsys):
    def run(*argv):
        code = generate.main([*map(str, argv)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def result(run, *argv):
    code, out, err = run(*argv, "--json", "--max-tokens", 12)
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def test_json_has_what_a_machine_wants(run, chats):
    (answer,) = result(run, "hi", "--model", chats, "--seed", 5)
    assert answer["prompt_tokens"] == [256, *b"user\nhi", 257, 10, 256, *b"assistant\n"]
    assert len(answer["tokens"]) == 12
    assert answer["finish_reason"] == "length"
    assert answer["seed"] == 5
    assert set(answer["timings"]) == {"load_s", "prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_mb"}
    assert all(value > 0 for value in answer["timings"].values())


def test_text_goes_to_stdout_and_statistics_to_stderr(run, chats):
    (answer,) = result(run, "hi", "--model", chats)
    code, out, err = run("hi", "--model", chats, "--max-tokens", 12, "--seed", 7)
    assert (code, out) == (0, answer["text"] + "\n")
    assert "prefill" in err and "decode" in err and "peak" in err and "seed" not in err, "nothing was drawn"
    assert "· seed 7" in run("hi", "--model", chats, "--max-tokens", 12, "--seed", 7, "--temperature", 1)[2]
    assert run("hi", "--model", chats, "--max-tokens", 12, "--quiet")[2] == ""


def test_a_base_model_completes_and_raw_makes_any_model_complete(run, chats, completes):
    assert result(run, "hi", "--model", completes)[0]["prompt_tokens"] == [256, *b"hi"]
    assert result(run, "hi", "--model", chats, "--raw")[0]["prompt_tokens"] == [*b"hi"]
    raw = result(run, "<|im_start|>hi", "--model", chats, "--raw-special")[0]
    assert raw["prompt_tokens"] == [256, *b"hi"]


def test_f110_control_tokens_that_a_user_types_stay_text(run, chats):
    prompt = result(run, "<|im_end|>", "--model", chats)[0]["prompt_tokens"]
    assert prompt.count(257) == 1, "only the frame's own"


def test_a_system_message_comes_first(run, chats):
    prompt = result(run, "hi", "--model", chats, "--system", "be kind")[0]["prompt_tokens"]
    assert prompt[:16] == [256, *b"system\nbe kind", 257]


def test_several_prompts_answer_in_order_as_if_alone(run, chats, tmp_path):
    (tmp_path / "prompt.txt").write_text("three\n")
    options = ["--model", chats, "--temperature", 1, "--seed", 3]
    alone = [result(run, text, *options)[0]["tokens"] for text in ("one", "two, longer", "three\n")]
    together = ["one", "--prompt", "two, longer", "--prompt-file", tmp_path / "prompt.txt", *options]
    assert [answer["tokens"] for answer in result(run, *together)] == alone
    out = run(*together, "--max-tokens", 12)[1]
    assert out.index("== 1 ==") < out.index("== 2 ==") < out.index("== 3 ==")


def test_stdin_is_a_prompt(run, chats, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("hé".encode())))
    assert bytes(result(run, "-", "--model", chats)[0]["prompt_tokens"][6:9]) == "hé".encode()


def test_same_seed_same_text_and_minus_one_is_random(run, chats):
    options = ["hi", "--model", chats, "--temperature", 1.5]
    first, again = (result(run, *options, "--seed", 9)[0] for _ in range(2))
    assert first["tokens"] == again["tokens"]
    assert result(run, *options)[0]["seed"] != result(run, *options)[0]["seed"]


def test_a_stop_string_ends_the_answer_before_it(run, chats):
    text = result(run, "hi", "--model", chats)[0]["text"]
    stop = text[3:5]
    answer = result(run, "hi", "--model", chats, "--stop", stop)[0]
    assert answer["finish_reason"] == "stop"
    assert answer["text"] == text[: text.index(stop)]


def test_logprobs_are_those_of_the_model(run, completes):
    answer = result(run, "ab", "--model", completes, "--logprobs", 3)[0]
    first = answer["logprobs"][0]
    assert first["token"] == answer["tokens"][0] == first["top"][0]["token"], "greedy takes the likeliest"
    assert [len(chosen["top"]) for chosen in answer["logprobs"]] == [3] * 12
    from llama3_scratch import forward, load

    checkpoint = load(completes)
    logits_BTV = forward(torch.tensor([answer["prompt_tokens"]]), checkpoint.params, checkpoint.config)
    assert first["logprob"] == pytest.approx(logits_BTV[0, -1].log_softmax(-1).max().item(), abs=1e-5)
    err = run("ab", "--model", completes, "--logprobs", 2, "--max-tokens", 3)[2]
    assert err.count("  | ") == 3


def test_f106_an_empty_prompt_begins_by_itself_or_is_refused(run, chats, completes):
    assert result(run, "", "--model", completes)[0]["prompt_tokens"] == [256]
    code, _, err = run("", "--model", chats)
    assert code == 2 and "the prompt is empty" in err


def test_f107_spaces_and_newlines_are_a_prompt(run, completes):
    assert result(run, " \n\n ", "--model", completes)[0]["prompt_tokens"] == [256, *b" \n\n "]


def test_f111_bytes_that_are_no_text_are_refused_or_replaced(run, chats, monkeypatch, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"abc\xffdef")
    code, _, err = run("--prompt-file", tmp_path / "bad.txt", "--model", chats)
    assert code == 2 and "byte 3 isn't UTF-8" in err and "--errors replace" in err
    answer = result(run, "--prompt-file", tmp_path / "bad.txt", "--model", chats, "--errors", "replace")[0]
    assert "abc�def".encode() in bytes(token for token in answer["prompt_tokens"] if token < 256)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\x80")))
    assert run("-", "--model", chats)[0] == 2
    assert run("arg\udcff", "--model", chats)[0] == 2, "how Python hands over an argument that isn't UTF-8"


def test_f114_f115_the_context_refuses_or_clamps(run, chats):
    code, _, err = run("x" * 100, "--model", chats, "--max-seq-len", 50)
    assert code == 2 and "tokens, limit 49" in err
    code, out, err = run("x", "--model", chats, "--max-seq-len", 40, "--max-tokens", 99, "--json")
    answer = json.loads(out)
    assert answer["finish_reason"] == "length"
    assert len(answer["prompt_tokens"]) + len(answer["tokens"]) == 40
    assert "warning: the context of 40 tokens leaves room for" in err


def test_f115_who_asked_for_no_number_of_tokens_is_not_warned(run, chats):
    _, out, err = run("x", "--model", chats, "--max-seq-len", 40, "--json")
    answer = json.loads(out)
    assert len(answer["prompt_tokens"]) + len(answer["tokens"]) == 40 and "warning" not in err


def test_a_chat_format_is_suggested_where_the_tokenizer_has_its_tokens(run, tmp_path):
    folder = tiny.folder(tmp_path / "base")
    extra = json.loads((folder / "tokenizer_extra.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_extra.json").write_text(json.dumps({**extra, "chat_format": None}), encoding="utf-8")
    err = run("hi", "--model", folder, "--max-tokens", 1)[2]
    assert "nothing says that this model chats; if it does, take --chat-format chatml\n" in err
    err = run("Once", "--model", "storyteller", "--max-tokens", 1)[2]
    assert "completing text, since nothing says that this model chats\n" in err


def test_f116_a_second_bos_is_warned_of(run, completes):
    err = run("<s>hi", "--model", completes, "--raw-special", "--max-tokens", 2)[2]
    assert "warning: the prompt begins with BOS" in err


BAD_OPTIONS = {
    "F119": (["--stop", ""], "--stop: expected some text"),
    "F122-negative": (["--temperature", "-1"], "--temperature: expected a number at least 0, got '-1'"),
    "F122-nan": (["--temperature", "nan"], "--temperature"),
    "F122-inf": (["--temperature", "inf"], "--temperature"),
    "F124-zero": (["--top-p", "0"], "--top-p: expected a number above 0 and at most 1"),
    "F124-above": (["--top-p", "1.1"], "--top-p"),
    "F125": (["--top-k", "-1"], "--top-k: expected a whole number at least 0"),
    "F126": (["--min-p", "1.5"], "--min-p"),
    "F128-zero": (["--max-tokens", "0"], "--max-tokens: expected a whole number at least 1"),
    "F128-negative": (["--max-tokens", "-4"], "--max-tokens"),
    "F129-large": (["--seed", str(2**64)], "--seed"),
    "F129-text": (["--seed", "one"], "--seed: expected a whole number"),
    "F130-dtype": (["--dtype", "int3"], "choose from"),
    "F130-device": (["--device", "tpu9"], "--device tpu9: not on this machine, which has cpu"),
    "F130-device-without-numbers": (["--device", "meta"], "--device meta: not on this machine, which has cpu"),
    "F134": (["--temprature", "1"], "unknown argument --temprature; did you mean --temperature?"),
    "max-seq-len": (["--max-seq-len", "999999"], "this model was trained for 4096 tokens"),
}


@pytest.mark.parametrize("argv, message", BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_options_that_cannot_be(run, chats, argv, message):
    code, out, err = run("hi", "--model", chats, *argv)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ") and message in err.splitlines()[-1]
    assert "Traceback" not in err


def test_f125_a_top_k_past_the_vocabulary_is_all_of_it(run, chats):
    options = ["hi", "--model", chats, "--temperature", 1, "--seed", 1]
    assert result(run, *options, "--top-k", 10**9)[0]["tokens"] == result(run, *options)[0]["tokens"]


def test_f129_the_largest_seed_is_one(run, chats):
    assert result(run, "hi", "--model", chats, "--temperature", 1, "--seed", 2**64 - 1)[0]["seed"] == 2**64 - 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_f131_cuda_that_is_not_there(run, chats):
    code, _, err = run("hi", "--model", chats, "--device", "cuda")
    assert code == 2 and "--device cuda: not on this machine, which has cpu" in err


def test_f132_short_dtypes_that_the_cpu_lacks_are_warned_of(run, chats, monkeypatch):
    from llama3_scratch import linear

    monkeypatch.setattr(linear, "multiplies", lambda dtype, device: dtype == torch.float32)
    code, _, err = run("hi", "--model", chats, "--dtype", "bfloat16", "--max-tokens", 2)
    assert code == 0 and "warning: this CPU doesn't multiply in bfloat16" in err


def test_no_weights_takes_as_many_prompts_as_a_run_does(run, chats):
    code, out, _ = run("hi", "--prompt", "hi there", "--model", chats, "--no-weights")
    assert code == 0 and "── 2 × 27 tokens ──" in out


def test_no_prompt_at_all(run):
    code, _, err = run()
    assert code == 2 and "no prompt" in err
    for name, why in (
        ("/does/not/exist", "No such file"),
        (Path(__file__).parent, "Is a directory"),
        ("a" * 999, "long"),
    ):
        code, _, err = run("--prompt-file", name)
        assert code == 2 and why in err and "Traceback" not in err


def test_f001_a_model_that_is_not_there(run):
    code, _, err = run("hi", "--model", "no/such/folder/at/all")
    assert code == 3 and "no/such/folder/at/all" in err


def test_a_model_without_a_tokenizer_says_so(run):
    code, _, err = run("hi", "--model", tiny.data("stories260k/stories260K.bin"))
    assert code == 3 and "has no tokenizer" in err


def test_f138_ctrl_c_keeps_the_text_and_the_statistics(run, chats, monkeypatch):
    whole = result(run, "hi", "--model", chats)[0]["text"]
    real = stream.stream

    def interrupted(*args, **kwargs):
        for count, step in enumerate(real(*args, **kwargs)):
            if count == 6:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(stream, "stream", interrupted)
    code, out, err = run("hi", "--model", chats, "--max-tokens", 12)
    assert code == 130
    assert out.strip() and whole.startswith(out.rstrip("\n"))
    assert "decode" in err


def test_f141_memory_that_runs_out_is_one_sentence(run, chats, monkeypatch):
    def hungry(*args, **kwargs):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried …")
        yield

    monkeypatch.setattr(stream, "stream", hungry)
    code, _, err = run("hi", "--model", chats)
    assert code == 5 and "out of memory" in err and "Traceback" not in err


def test_f120_a_terminal_is_never_driven_by_the_model(capsys, monkeypatch):
    answer = Detokenizer(tiny.tokenizer())
    for byte in b"red \x1b[31m":
        answer.take(byte)
    answer.finish("stop")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    Printer([], [[]]).show([answer], None, Timings(0.0))
    assert capsys.readouterr().out == "red ␛[31m\n"


def test_words_of_an_answer_on_a_terminal_are_not_broken_and_in_a_pipe_nothing_is_added(run, chats, monkeypatch):
    shown = {}
    monkeypatch.setattr(detokenizer, "piece", lambda token, tokenizer: b" wordy")
    monkeypatch.setattr(word_wrap, "columns", lambda: 22)
    for terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        shown[terminal] = run("one", "--prompt", "two", "--model", chats, "--max-tokens", "9")[1].splitlines()
    assert shown[False] == ["== 1 ==", " wordy" * 9, "== 2 ==", " wordy" * 9]
    assert shown[True] == ["== 1 ==", " wordy wordy wordy", *["wordy wordy wordy"] * 2, "== 2 ==", *shown[True][1:4]]


def test_ids_past_the_tokenizer_are_tokens_without_text():
    answer = Detokenizer(tiny.tokenizer())
    assert [answer.take(token) for token in (104, 270, 105)] == [False] * 3
    assert (answer.text, answer.tokens) == ("hi", [104, 270, 105])


def test_quantize_on_the_fly(tmp_path, capsys):
    """A folder of the same form answers the same; one that is quantised already is refused."""
    config = replace(tiny.TILED, vocab_size=272)
    write_meta(tmp_path / "m", tiny.params(config), config, tiny.tokenizer())
    write_meta(tmp_path / "small", quantize(tiny.params(config), "int4"), config, tiny.tokenizer())
    answers = []
    for arguments in (["--model", str(tmp_path / "m"), "--quantize", "int4"], ["--model", str(tmp_path / "small")]):
        assert generate.main(["hello", *arguments, "--max-tokens", "9", "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["tokens"])
    assert len(answers[0]) == 9 and answers[0] == answers[1]
    assert generate.main(["hello", "--model", str(tmp_path / "small"), "--quantize", "int8"]) == 2
    assert "this model's weights are quantised already; take its float weights" in capsys.readouterr().err
    assert generate.main(["hello", "--model", str(tmp_path / "m"), "--quantize", "int3"]) == 2
    assert "invalid choice: 'int3'" in capsys.readouterr().err
    assert generate.main(["hello", "--model", str(tiny.folder(tmp_path / "odd")), "--quantize", "int8"]) == 0
    assert "stored as int8-row: int8 takes rows in 16s and columns in 32s" in capsys.readouterr().err


def test_a_ggufs_blocks_stay_as_stored_where_the_kernels_take_them(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    config, path = replace(tiny.TILED, vocab_size=272), tmp_path / "m.gguf"
    write_gguf(path, quantize(tiny.params(config), "int4-sym"), config, tiny.tokenizer(), kind="Q4_0")

    def form(as_floats=False, **chosen):
        checkpoint, _ = open_model(ModelChoice(model=path, **chosen), as_floats=as_floats)
        return stored(checkpoint.params, "layers.0.attention.wq").name

    assert form() == ("int4-sym" if kernels.library() else "float32")
    assert form(dtype="float64") == form(as_floats=True) == "float32"
    assert form(quantize="int8") == "int8"
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert form() == "float32"


CACHE_OPTIONS = {
    "F212": (["--kv-bits", "3"], "(choose from 16, 8, 4)"),
    "F212-keys": (["--kv-k-bits", "32"], "--kv-k-bits: invalid choice"),
    "F212-text": (["--kv-v-bits", "int8"], "--kv-v-bits: invalid int value: 'int8'"),
    "F213": (["--kv-bits", "8", "--kv-group-size", "5"], "--kv-group-size 5: must divide the head's width, which is 8"),
    "F213-odd": (["--kv-bits", "4", "--kv-group-size", "1"], "which is 8, and be even for 4 bits"),
    "F213-zero": (["--kv-bits", "4", "--kv-group-size", "0"], "--kv-group-size: expected a whole number at least 1"),
    "group-without-bits": (["--kv-group-size", "8"], "--kv-group-size 8: goes with --kv-bits 8 or 4"),
    "group-for-bf16": (["--kv-group-size", "8", "--kv-bits", "16"], "--kv-group-size 8: goes with --kv-bits 8 or 4"),
    "sinks-alone": (["--sinks", "2"], "--sinks goes with --sliding"),
    "sliding-too-far": (["--sliding", "50", "--max-seq-len", "50"], "a sliding cache of 50 slots keeps 4 sinks and 50"),
    "sliding-several": (["--sliding", "9", "--prompt", "b"], "--sliding: takes one prompt, got 2"),
    "cache-several": (["--prompt-cache", "x", "--prompt", "b"], "--prompt-cache: takes one prompt, got 2"),
    "cache-sliding": (["--prompt-cache", "x", "--sliding", "9"], "leave one out"),
    "cache-trace": (["--prompt-cache", "x", "--trace"], "a trace shows the whole prompt"),
}


@pytest.mark.parametrize("argv, message", CACHE_OPTIONS.values(), ids=CACHE_OPTIONS)
def test_cache_options_that_cannot_be(run, chats, argv, message):
    code, out, err = run("hi", "--model", chats, *argv)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ") and message in err.splitlines()[-1]


@pytest.mark.parametrize("prompts", [["hi"], ["hi", "--prompt", "hi there"]], ids=["one", "F223-several"])
def test_a_short_cache_is_used_and_answers(run, chats, prompts, monkeypatch):
    made = []
    real = timed.timed_stream
    monkeypatch.setattr(timed, "timed_stream", lambda *args, **kw: made.append(kw["cache"]) or real(*args, **kw))
    forms = {
        (): ("float32", "float32"),
        ("--kv-bits", 16): ("bfloat16", "bfloat16"),
        ("--kv-bits", 8): ("int8", "int8"),
        ("--kv-bits", 4, "--kv-k-bits", 8): ("int8", "uint8"),
        ("--kv-v-bits", 4, "--kv-group-size", 4): ("float32", "uint8"),
    }
    for argv, dtypes in forms.items():
        answers = result(run, *prompts, "--model", chats, *argv)
        assert [answer["text"] != "" for answer in answers] == [True] * (1 + len(prompts) // 2)
        layer = made[-1].layers["layers.0.attention"]
        assert tuple(str(kept.values.dtype).removeprefix("torch.") for kept in layer) == dtypes
    assert layer[1].scales.shape[-1] == 2


def test_a_trace_shows_what_a_short_cache_gives_back(run, chats):
    def key_lines(*argv):
        code, out, err = run("hi", "--model", chats, "--max-tokens", 1, "--trace-steps", "k_BTGK,k_BSGK", *argv)
        assert code == 0, err
        return [line for line in out.splitlines() if "k_BSGK" in line]

    assert len(key_lines()) == len(key_lines("--kv-bits", 8)) >= 1
    assert key_lines() != key_lines("--kv-bits", 8)


def test_sliding_goes_on_past_the_context(run, chats):
    argv = ["hi", "--model", chats, "--max-seq-len", 40, "--max-tokens", 99, "--json"]
    code, out, err = run(*argv, "--sliding", 12, "--sinks", 2)
    answer = json.loads(out)
    assert code == 0 and len(answer["prompt_tokens"]) + len(answer["tokens"]) > 80
    assert "leaves room for" not in err
    short = json.loads(run(*argv)[1])["tokens"]
    assert answer["tokens"][: len(short)] == short and len(short) < 30


def test_a_prompt_cache_saves_the_prefill_and_changes_no_token(run, chats, tmp_path):
    file = tmp_path / "prompt.cache"
    plain = result(run, "hello, model", "--model", chats)[0]["tokens"]
    argv = ["--model", chats, "--prompt-cache", file]
    assert result(run, "hello, model", *argv)[0]["tokens"] == plain
    first = file.read_bytes()
    _, out, err = run("hello, model", *argv, "--json", "--max-tokens", 12)
    assert json.loads(out)["tokens"] == plain and "30 of 31 tokens of the prompt from" in err
    other = result(run, "hello, you", "--model", chats)[0]["tokens"]
    _, out, err = run("hello, you", *argv, "--json", "--max-tokens", 12)
    assert json.loads(out)["tokens"] == other and "13 of 29 tokens of the prompt from" in err
    assert f"{file} holds another prompt, like this one for 13 of 29 tokens, and stays as it is" in err
    assert file.read_bytes() == first


def test_a_prompt_cache_only_grows(run, completes, tmp_path):
    """What it holds is never lost: not to another prompt, another answer, a shorter one or a part of the prompt."""
    file = tmp_path / "prompt.cache"
    argv = ["--model", completes, "--prompt-cache", file]
    result(run, "hello, model", *argv)
    first = file.read_bytes()
    for prompt in ["hello, model"], ["hello"], ["hello, model", "--temperature", 3, "--seed", 1]:
        code, _, err = run(*prompt, *argv, "--max-tokens", 3)
        assert code == 0 and "another prompt" not in err and file.read_bytes() == first
    for prompt in ("other words", "hello, modesty"):
        code, _, err = run(prompt, *argv, "--max-tokens", 12)
        assert code == 0 and f"{file} holds another prompt" in err and file.read_bytes() == first
    assert run("hello, model", *argv, "--max-tokens", 30)[0] == 0 and len(file.read_bytes()) > len(first)


def test_f221_f222_a_prompt_cache_that_is_of_no_use(run, chats, completes, tmp_path):
    file = tmp_path / "prompt.cache"
    result(run, "hi", "--model", chats, "--prompt-cache", file)
    before = file.read_bytes()
    for argv, message in ((["--dtype", "float64"], "made with dtype float32"), (["--kv-bits", "8"], "made with keys")):
        code, out, err = run("hi", "--model", chats, "--prompt-cache", file, *argv)
        assert (code, out) == (3, "") and f"error: {file}: {message}" in err and "Traceback" not in err
    assert file.read_bytes() == before
    file.write_bytes(before[:-7])
    code, out, err = run("hi", "--model", chats, "--prompt-cache", file)
    assert (code, out) == (3, "") and f"error: {file}: damaged" in err
    code, _, err = run("hi", "--model", "no/such/model", "--prompt-cache", tmp_path / "no" / "file")
    assert code == 3 and f"there is no folder {tmp_path / 'no'}" in err, "before the model is looked for"


def test_f138_ctrl_c_keeps_what_the_prompt_cache_has_seen(run, chats, monkeypatch, tmp_path):
    real = stream.stream

    def interrupted(*args, **kwargs):
        for count, step in enumerate(real(*args, **kwargs)):
            if count == 6:
                raise KeyboardInterrupt
            yield step

    whole = result(run, "hi", "--model", chats)[0]["tokens"]
    with monkeypatch.context() as struck:
        struck.setattr(stream, "stream", interrupted)
        assert run("hi", "--model", chats, "--prompt-cache", tmp_path / "file")[0] == 130
    assert result(run, "hi", "--model", chats, "--prompt-cache", tmp_path / "file")[0]["tokens"] == whole


def test_without_a_network_the_storyteller_answers(offline, capsys):
    """It goes on with the text where nothing else can be had; but a model that was named isn't replaced."""
    assert generate.main(["Once upon a time", "--max-tokens", "8", "--temperature", "0"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(", there") and "no network; instead, the storyteller that comes with the code" in err
    assert generate.main(["Once upon a time", "--model", "smollm2-135m"]) == 3
    assert generate.main(["Once", "--model", "storyteller", "--max-tokens", "2"]) == 0
