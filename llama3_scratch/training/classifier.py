"""A classifier: a head of one row a class on what `decode` makes of a text, instead of the head over the vocabulary."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama3_scratch.checkpoint.hf_out import write_safetensors
from llama3_scratch.checkpoint.load import Checkpoint
from llama3_scratch.checkpoint.safetensors_file import read_safetensors
from llama3_scratch.config import Config
from llama3_scratch.data.batches import IGNORE, Batch, Batches
from llama3_scratch.data.labelled import READ
from llama3_scratch.errors import FileError, MissingFileError, UsageError
from llama3_scratch.linear import at_least_f32, embed, linear
from llama3_scratch.model import decode, fused_block
from llama3_scratch.params.lora import attach, trainable
from llama3_scratch.stored import Params, map_tensors, quantised
from llama3_scratch.system.files import read_json
from llama3_scratch.system.timings import remaining
from llama3_scratch.system.writing import fresh_folder
from llama3_scratch.training.choices import Classification
from llama3_scratch.training.loop import ACTIVATIONS
from llama3_scratch.training.loss import Wrap, cross_entropy, unchanged

log = logging.getLogger("llama3_scratch")

HEAD = "score"  # as LlamaForSequenceClassification calls it
ALPHA = 32.0  # of adapters
_TENSORS, _ABOUT = "learnt.safetensors", "classifier.json"


def class_logits(
    tokens_BT: Tensor, params: Params, config: Config, *, wrap: Wrap = unchanged, dtype: torch.dtype | None = None
) -> Tensor:
    """The score of each class at each token: logits_BTC, in at least f32."""
    x_BTD = embed(tokens_BT, params, "tok_embeddings", dtype=dtype)
    x_BTD = decode(x_BTD, params, config, block=wrap(fused_block))
    logits_BTC = linear(x_BTD, params, HEAD)
    return logits_BTC.to(at_least_f32(logits_BTC.dtype))


def class_loss(
    params: Params, config: Config, batch: Batch, *, wrap: Wrap = unchanged, dtype: torch.dtype | None = None
) -> Tensor:
    """`cross_entropy` of a batch whose targets are classes: a number."""
    logits_BTC = class_logits(batch.tokens_BT, params, config, wrap=wrap, dtype=dtype)
    return cross_entropy(logits_BTC, batch.targets_BT)


def prepare(
    checkpoint: Checkpoint, choices: Classification, classes: int, *, dtype: str = "f32", seed: int = 0
) -> tuple[Params, list[str]]:
    """The params with a fresh head, and the names of those that learn: the head alone, with it the last layer and the
    last norm, all weights, or an adapter beside each projection."""
    params, config, trained = checkpoint.params, checkpoint.config, choices.train
    if name := quantised(params):
        raise UsageError(
            f"{checkpoint.path}: {name}: weights in integers aren't trained; take the model they came from"
        )
    params = {name: tensor for name, tensor in params.items() if name != "output.weight"}  # nothing asks it
    if trained != "all":  # frozen floats are only multiplied by
        params = map_tensors(params, lambda tensor: tensor.to(ACTIVATIONS[dtype]))
    names: list[str] = []
    if trained == "lora":
        params = attach(params, config, rank=choices.rank, alpha=ALPHA, seed=seed)
        names = list(trainable(params))
    elif trained == "last-block":
        names = ["norm.weight", *(name for name in params if name.startswith(f"layers.{config.n_layers - 1}."))]
    elif trained == "all":
        names = list(params)
    generator = torch.Generator().manual_seed(seed)
    head_CD = torch.randn(classes, config.dim, generator=generator) / math.sqrt(config.dim)
    return params | {f"{HEAD}.weight": head_CD.to(params["norm.weight"].device)}, [*names, f"{HEAD}.weight"]


@torch.inference_mode()
def confusion(params: Params, config: Config, batches: Batches, classes: int, *, dtype: torch.dtype | None) -> Tensor:
    """How many texts of each class (rows) were taken for each class (columns): counts_CC, on the CPU."""
    device = params["norm.weight"].device
    counts_CC = torch.zeros(classes, classes, dtype=torch.long)
    begun = time.perf_counter()
    for index in range(len(batches)):
        if index and index % 10 == 0:
            log.info("tested: batch %d of %d · %s", index, len(batches), remaining(begun, index, len(batches)))
        batch = batches.batch(index).to(device)
        read_BT = batch.targets_BT != IGNORE
        taken_B = class_logits(batch.tokens_BT, params, config, dtype=dtype)[read_BT].argmax(-1).cpu()
        counts_CC.index_put_((batch.targets_BT[read_BT].cpu(), taken_B), torch.tensor(1), accumulate=True)
    return counts_CC


def write_classifier(folder: Path, learnt: Params, about: dict[str, Any]) -> None:
    """What learnt, and in `about` the classes and the token they're read at; the model that it's put into stays where
    it is."""
    with fresh_folder(folder) as temporary:
        write_safetensors(temporary / _TENSORS, {name: tensor.detach().contiguous() for name, tensor in learnt.items()})
        (temporary / _ABOUT).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_classifier(folder: Path, checkpoint: Checkpoint) -> tuple[Params, Sequence[str], str]:
    """The model's params with what a classifier has learnt, its classes, and the token they're read at."""
    if not (folder / _ABOUT).is_file():
        raise MissingFileError(f"{folder}: expected a classifier, found no {_ABOUT}")
    about = read_json(folder / _ABOUT, "what a classifier says of itself")
    classes, read = about.get("classes"), about.get("read")
    if not isinstance(classes, list) or len(classes) < 2 or read not in READ:
        raise FileError(f"{folder / _ABOUT}: expected two classes or more, and read as {' or '.join(READ)}")
    learnt = read_safetensors(folder / _TENSORS)
    head = learnt.get(f"{HEAD}.weight")
    wanted = (len(classes), checkpoint.config.dim)
    if head is None or head.shape != wanted:
        got = "nothing" if head is None else list(head.shape)
        raise FileError(f"{folder / _TENSORS}: {HEAD}.weight: expected {list(wanted)}, got {got}; of another model?")
    for name, tensor in learnt.items():
        there = checkpoint.params.get(name)
        if ".adaptor." not in name and name != f"{HEAD}.weight" and (there is None or there.shape != tensor.shape):
            raise FileError(f"{folder / _TENSORS}: {name} is no weight of {checkpoint.path} of this size")
    device = checkpoint.params["norm.weight"].device
    return checkpoint.params | map_tensors(learnt, lambda tensor: tensor.to(device)), classes, read
