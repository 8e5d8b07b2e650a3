"""Token shards: what is written is what is read, in windows whose order needs no memory."""

from __future__ import annotations

import json
import logging
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from llama3_scratch.data import shards as module
from llama3_scratch.data.batches import IGNORE
from llama3_scratch.data.shards import MANIFEST, Shards, write_shards
from llama3_scratch.errors import FileError, UsageError
from llama3_scratch.text.tokenizer import PATTERN, Tokenizer
from tests.small_training import bytes_tokenizer

TEXTS = [random.Random(number).randbytes(20).hex() + "文" for number in range(200)]


def write(folder: Path, texts=TEXTS, **options):
    return write_shards(iter(texts), bytes_tokenizer(), folder, **options)


def all_ids(folder: Path, part: str) -> list[int]:
    files = sorted(folder.glob(f"{part}_*.bin"))
    return [int(id) for file in files for id in np.fromfile(file, dtype="<u2")]


def documents(ids: list[int]) -> set[str]:
    text = bytes_tokenizer().decode(ids)
    return {part.removesuffix("<|end_of_text|>") for part in text.split("<|begin_of_text|>")[1:]}


def test_every_document_is_in_one_part(tmp_path):
    manifest = write(tmp_path / "a", validation=0.2, shard=1000)
    train, held_out = (documents(all_ids(tmp_path / "a", part)) for part in ("train", "validation"))
    assert train | held_out == set(TEXTS) and not train & held_out and 20 < len(held_out) < 60
    parts = manifest["parts"]
    assert parts["train"]["documents"] == len(train) and parts["validation"]["documents"] == len(held_out)
    assert parts["train"]["bytes"] == sum(len(text.encode()) for text in train)
    assert [file["tokens"] for file in parts["train"]["files"]][:-1] == [1000] * (len(parts["train"]["files"]) - 1)
    write(tmp_path / "b", [*TEXTS[::-1], *TEXTS], validation=0.2)  # in whatever order, and however often
    assert documents(all_ids(tmp_path / "b", "validation")) == held_out
    write(tmp_path / "c", validation=0.2, seed=1)
    assert documents(all_ids(tmp_path / "c", "validation")) != held_out


def test_windows_cover_an_epoch_and_shuffle_by_number_alone(tmp_path):
    write(tmp_path, shard=1500, validation=0)
    batches = Shards(tmp_path).batches("train", size=3, length=16, seed=7)
    files = [np.fromfile(file, dtype="<u2") for file in sorted(tmp_path.glob("train_*.bin"))]
    wanted = {tuple(file[i : i + 16]) for file in files for i in range(0, len(file) - 16, 16)}
    seen = [tuple(row.tolist()) for index in range(len(batches)) for row in batches.batch(index).tokens_BT]
    assert len(seen) == len(set(seen)) and wanted >= set(seen) and len(wanted) - len(seen) < 3
    again = Shards(tmp_path).batches("train", size=3, length=16, seed=7)
    for index in (len(batches) - 1, 5, len(batches) + 5):  # in any order, in another process or epoch
        assert torch.equal(again.batch(index).tokens_BT, batches.batch(index).tokens_BT)
    assert not torch.equal(batches.batch(5).tokens_BT, batches.batch(len(batches) + 5).tokens_BT)
    other = Shards(tmp_path).batches("train", size=3, length=16, seed=8)
    assert not torch.equal(other.batch(0).tokens_BT, batches.batch(0).tokens_BT)
    assert other.fingerprint != batches.fingerprint == again.fingerprint


def test_targets_follow_within_a_document(tmp_path):
    write(tmp_path, ["ab", "cde", "f"] * 40, validation=0)
    batch = Shards(tmp_path).batches("train", size=2, length=30, seed=0).batch(0)
    for tokens_T, targets_T, documents_T in zip(batch.tokens_BT, batch.targets_BT, batch.documents_BT, strict=True):
        begins = (tokens_T == 256).tolist()
        assert documents_T[0] == 0
        for t in range(29):
            assert documents_T[t + 1] - documents_T[t] == begins[t + 1]
            assert targets_T[t] == (IGNORE if begins[t + 1] else tokens_T[t + 1])
        assert (tokens_T == 257).any() and not (targets_T == 256).any()


def test_a_tokenizer_that_only_ends(tmp_path):
    tokenizer = Tokenizer(
        {bytes([byte]): byte for byte in range(256)},
        pattern=PATTERN,
        special_tokens={"<|end|>": 256},
        bos_id=None,
        eos_id=256,
        stop_tokens=[256],
        chat_format=None,
        add_bos=False,
    )
    write_shards(["ab", "cde"] * 30, tokenizer, tmp_path, validation=0)
    batch = Shards(tmp_path).batches("train", size=1, length=40, seed=0).batch(0)
    ends = batch.tokens_BT[0] == 256
    assert torch.equal(batch.documents_BT[0, 1:], ends[:-1].cumsum(0))
    assert (batch.targets_BT[0, :-1][ends[:-1]] == IGNORE).all()
    tokenizer.eos_id = None
    with pytest.raises(UsageError, match="neither a begin nor an end token"):
        write_shards(["ab"], tokenizer, tmp_path / "b")


def test_f235_an_id_that_the_vocabulary_hasnt(tmp_path):
    write(tmp_path, validation=0)
    read = Shards(tmp_path)
    batches = read.batches("train", size=1, length=16, seed=0)
    with (tmp_path / "train_000.bin").open("r+b") as file:  # as it's mapped
        file.write(np.full(read.parts["train"]["tokens"], 300, "<u2").tobytes())
    with pytest.raises(FileError, match=r"token id 300 at index \d+ of shard 0, the vocabulary has 258"):
        batches.batch(0)


def test_f236_f239_files_that_arent_as_written(tmp_path):
    write(tmp_path, validation=0)
    file = tmp_path / "train_000.bin"
    raw = file.read_bytes()
    for data, said in (
        (raw[:-1], "bytes, which isn't a multiple of the 2 of an id"),
        (raw[:-2], f"shards.json says {len(raw)}"),
        (raw[:-2] + b"\0\0", "isn't what was written"),
        (b"", "empty file, expected token ids"),
    ):
        file.write_bytes(data)
        with pytest.raises(FileError, match=said):
            Shards(tmp_path).batches("train", size=1, length=16, seed=0)
    file.unlink()
    with pytest.raises(FileError, match="token ids not found"):
        Shards(tmp_path).batches("train", size=1, length=16, seed=0)
    with pytest.raises(FileError, match="expected a folder of prepared data, found nothing"):
        Shards(tmp_path / "nowhere")


def test_f239_a_file_that_changes_meanwhile_is_warned_of(tmp_path, caplog):
    write(tmp_path, validation=0)
    batches = Shards(tmp_path).batches("train", size=1, length=16, seed=0)
    batches.batch(0)
    assert "has changed" not in caplog.text
    os.utime(tmp_path / "train_000.bin", ns=(1, 1))
    batches.batch(1)
    assert "has changed" not in caplog.text
    batches.batch(len(batches))
    assert f"{tmp_path / 'train_000.bin'}: has changed while it was learnt from" in caplog.text


def test_what_is_no_prepared_data_is_said(tmp_path):
    (tmp_path / "stories.jsonl").write_text("{}")
    (tmp_path / "folder").mkdir()
    for name, found in (("stories.jsonl", "a file"), ("folder", "no shards.json in it"), ("none", "nothing")):
        with pytest.raises(FileError, match=rf"{name}: expected a folder of prepared data, found {found}"):
            Shards(tmp_path / name)


@pytest.mark.parametrize("count", [1, 3])
def test_the_ends_of_a_few_long_texts_are_held_out(tmp_path, caplog, count):
    caplog.set_level(logging.INFO)
    texts = ["\n".join(f"{n} line {line} of it" for line in range(200)) for n in range(count)]
    write(tmp_path, texts, validation=0.05)
    learnt, held_out = (documents(all_ids(tmp_path, part)) for part in ("train", "validation"))
    assert len(learnt) == len(held_out) == count
    for text in texts:
        [end] = [end for end in held_out if text.endswith(end)]
        [beginning] = [beginning for beginning in learnt if text.startswith(beginning)]
        assert f"{beginning}\n{end}" == text and 0.03 * len(text) < len(end) <= 0.05 * len(text)
    assert f"held out is the end of each of {count} documents, 5 % of it" in caplog.text
    write(tmp_path, ["word " * 400], validation=0.05)  # without lines it's parted at a space
    assert len(documents(all_ids(tmp_path, "validation")).pop()) == 19 * 5
    write(tmp_path, ["从前有一只猫。" * 60], validation=0.05)  # Chinese behind a sentence
    assert documents(all_ids(tmp_path, "validation")) == {"从前有一只猫。" * 3}
    write(tmp_path, ["x" * 400], validation=0.05)  # and where there's none of these, not at all
    assert "nothing was held out of 1 documents" in caplog.text


def test_a_single_text_is_never_held_out_as_a_whole(tmp_path):
    text = "word " * 400
    for seed in range(8):  # by chance it would be, with half of them
        parts = write(tmp_path, [text], validation=0.5, seed=seed)["parts"]
        assert (parts["train"]["bytes"], parts["validation"]["bytes"]) == (1004, 995)
    with pytest.raises(FileError, match="no document is left to train on"):
        write(tmp_path, [text], validation=1)  # as was asked for


def test_a_document_that_has_no_tokens_is_named(tmp_path):
    with pytest.raises(FileError, match=r"document 2, 'b.*': the text has a lone surrogate"):
        write(tmp_path, ["a", "b\ud800"])


def test_held_out_may_be_less_than_a_batch(tmp_path, caplog):
    write(tmp_path, ["abcdefgh " * 100], validation=0.1)
    shards = Shards(tmp_path)
    held_out = shards.held_out(size=64, length=16)
    assert len(held_out) == 1 and held_out.batch(0).tokens_BT.shape == (5, 16)
    assert shards.held_out(size=2, length=16).batch(0).tokens_BT.shape == (2, 16)
    assert shards.held_out(size=2, length=200) is None
    assert "tokens, too few for a row of 200, so there will be no held-out loss; prepare the" in caplog.text


def test_f224_f238_too_little(tmp_path, caplog):
    with pytest.raises(FileError, match="no document is left to train on"):
        write(tmp_path / "none", ["", "  \n"])
    write(tmp_path / "one", ["one"])
    assert caplog.text.count("nothing was held out of 1 documents") == 1
    write(tmp_path / "one", ["only one"], validation=0.0)  # as was asked for
    assert caplog.text.count("nothing was held out") == 1
    with pytest.raises(FileError, match="10 tokens make 0 windows of 16, fewer than the 4 of a batch"):
        Shards(tmp_path / "one").batches("train", size=4, length=16, seed=0)
    with pytest.raises(FileError, match="0 tokens make 0 windows"):
        Shards(tmp_path / "one").batches("validation", size=1, length=4, seed=0)


def test_another_tokenizer_beside_the_data_is_refused(tmp_path):
    write(tmp_path, validation=0)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"vocab_size": 300}))
    with pytest.raises(FileError, match="the tokenizer has 258 tokens, the data were made with 300"):
        Shards(tmp_path)


def test_large_vocabularies_take_four_bytes():
    assert module.id_dtype(65_536).itemsize == 2 and module.id_dtype(65_537).itemsize == 4


def test_a_stream_is_never_held(tmp_path):
    """Documents are asked for one by one, and written as soon as a shard is full."""
    seen = []

    def texts():
        for number in range(300):
            seen.append(len(list(tmp_path.glob("train_*.bin"))))
            yield f"text {number} " * 10

    write(tmp_path, texts(), validation=0, shard=5000)
    assert seen[-1] >= 5
