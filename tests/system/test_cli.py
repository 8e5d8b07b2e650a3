"""What all verbs share: help without torch, one sentence an error, exit codes, quiet pipes."""

from __future__ import annotations

import errno
import logging
import os
import re
import runpy
import subprocess
import sys

import pytest

import llama3_scratch
from llama3_scratch import __main__, convert
from llama3_scratch.checkpoint import names
from llama3_scratch.checkpoint.gguf_out import FILE_TYPES
from llama3_scratch.config import OFFICIAL
from llama3_scratch.errors import FileError, Llama3Error, MismatchError, ResourceError, UsageError
from llama3_scratch.system import cli
from llama3_scratch.text.tokenizer import CHAT_FORMATS
from tests.house import PACKAGE


def verb_that(does):
    @cli.verb(lambda: cli.Parser("test", "A test."))
    def main(options):
        return does()

    return main


def raises(error):
    def does():
        raise error

    return verb_that(does)


@pytest.mark.parametrize(
    "error, code",
    [
        (Llama3Error("a"), 1),
        (UsageError("a"), 2),
        (FileError("a"), 3),
        (MismatchError("a"), 4),
        (ResourceError("a"), 5),
        (MemoryError(), 5),
        (OSError(28, "No space left on device", "/some/file"), 5),
        (PermissionError(13, "Permission denied", "/some/file"), 3),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_errors_end_with_their_code_and_one_sentence(error, code, capsys):
    assert raises(error)([]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err.count("\n") == (0 if code == 130 else 1)


def test_debug_shows_the_traceback(capsys):
    assert raises(FileError("gone"))(["--debug"]) == 3
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("error: gone\n")


def test_an_error_of_ours_in_disguise_shows_where_it_came_from(capsys):
    assert raises(ZeroDivisionError("bug"))([]) == 1
    assert "Traceback" in capsys.readouterr().err, "a bug isn't hidden behind a sentence"


def test_warnings_go_to_stderr_and_quiet_silences_them(capsys):
    def does():
        logging.getLogger("llama3_scratch").warning("odd")
        logging.getLogger("llama3_scratch").info("by the way")
        return 0

    assert verb_that(does)([]) == 0
    assert capsys.readouterr().err == "warning: odd\nby the way\n"
    verb_that(does)(["--quiet"])
    assert capsys.readouterr().err == ""


def _with_flags():
    parser = cli.Parser("test", "")
    parser.add_argument("given", metavar="MODEL")
    parser.add_argument("-n", "--max-seq-len")
    parser.add_argument("--allow-extra", action="store_true")
    parser.add_argument("--adapter", dest="adapters", action="append")
    parser.add_argument("--dtype")
    return parser


@pytest.mark.parametrize(
    "said, shown",
    [
        ("lower `max_seq_len`", "lower --max-seq-len"),
        ("`max_seq_len` 9: too long", "--max-seq-len 9: too long"),
        ("`allow_extra=True` ignores that", "--allow-extra ignores that"),
        ("take `dtype=float32` or `dtype`", "take --dtype float32 or --dtype"),
        ("`adapters`, `given`", "--adapter, MODEL"),
        ("`load` and `no_such`, ``, `a b` stay", "`load` and `no_such`, ``, `a b` stay"),
    ],
)
def test_a_setting_in_backquotes_is_told_as_its_flag(said, shown, capsys):
    @cli.verb(_with_flags)
    def main(options):
        logging.getLogger("llama3_scratch").warning("%s", said)
        raise UsageError(said)

    assert main(["x"]) == 2
    assert capsys.readouterr().err == f"warning: {shown}\nerror: {shown}\n"


def test_help_and_usage_errors_need_no_torch():
    code = (
        "import sys, contextlib, io\n"
        "import importlib\n"
        f"for verb in {sorted(__main__.verbs())!r}:\n"
        "    main = importlib.import_module(f'llama3_scratch.{verb}').main\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        assert main(['--help']) == 0, verb\n"
        "    assert out.getvalue().startswith('usage: python -m llama3_scratch.' + verb), verb\n"
        "    assert main(['--no-such-flag']) == 2, verb\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.PIPE)


def test_f137_a_reader_that_has_seen_enough_is_no_error():
    code = (
        "from llama3_scratch.system import cli\n"
        "@cli.verb(lambda: cli.Parser('test', ''))\n"
        "def main(options):\n"
        "    for _ in range(100_000): print('text')\n"
        "    return 0\n"
        "raise SystemExit(main([]))\n"
    )
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    os.read(reader, 10)
    os.close(reader)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode in (0, 141)


def test_the_package_lists_its_verbs(capsys):
    assert __main__.main() == 0
    out = capsys.readouterr().out
    for verb in ("generate", "chat", "convert", "download", "describe", "verify", "parity"):
        assert f"python -m llama3_scratch.{verb} " in out


def test_names_of_the_package_are_there():
    for name in llama3_scratch.MODULE_OF:
        assert getattr(llama3_scratch, name) is not None
    assert llama3_scratch.linear.linear is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = llama3_scratch.nonsense


def test_the_names_that_a_message_lists_are_all_there_are():
    for call, more in ((names.resolve, {names.STORYTELLER}), (names.canonical, set())):
        with pytest.raises((FileError, UsageError)) as caught:
            call("no-such-model")
        listed = re.findall(r"(?:llama\d|smollm)[\w.-]*\w|storyteller", str(caught.value))
        assert set(listed) == {names.DEFAULT, names.BLOCKS, *OFFICIAL} | more and len(set(listed)) == len(listed)
    for name in [*OFFICIAL, names.DEFAULT, names.BLOCKS]:
        assert names.canonical(name)
    assert names.resolve(names.STORYTELLER).is_dir()


@pytest.mark.parametrize("where", ["generate", "chat", "convert", "scripts/finetune_lora"])
def test_chat_formats_are_offered_as_the_tokenizer_has_them(where):
    path = PACKAGE.parent / f"{where}.py" if "/" in where else PACKAGE / f"{where}.py"
    actions = runpy.run_path(str(path))["make_parser"]()._actions
    (choices,) = (action.choices for action in actions if "--chat-format" in action.option_strings)
    assert set(choices) == set(CHAT_FORMATS)


def test_gguf_types_are_offered_as_they_are_written():
    (choices,) = (action.choices for action in convert.make_parser()._actions if "--type" in action.option_strings)
    assert set(choices) == set(FILE_TYPES)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_file_without_a_name_that_takes_no_more_is_a_full_disk(number):
    known = cli.as_ours(OSError(number, "it is full"))
    assert known is not None and known.exit_code == 5 and str(known) == "the disk is full: it is full"


def test_a_flag_that_was_begun_is_the_one_that_was_meant(capsys):
    assert convert.main(["a", "b", "--to", "meta", "--sh", "3"]) == 2
    assert "unknown argument --sh; did you mean --shards?" in capsys.readouterr().err
