"""Adapters put beside a checkpoint's weights, with a warning where they were made for another model."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llama3_scratch.checkpoint.peft import read_peft
from llama3_scratch.checkpoint.peft_config import CONFIG_FILE
from llama3_scratch.params.lora import stack
from llama3_scratch.stored import stored
from llama3_scratch.system.files import read_json
from llama3_scratch.system.json_fields import text_field
from llama3_scratch.text.tokenizer import CHAT_TOKENS

if TYPE_CHECKING:
    from llama3_scratch.checkpoint.load import Checkpoint

log = logging.getLogger("llama3_scratch")


def add_adapters(checkpoint: Checkpoint, folders: list[Path]) -> Checkpoint:
    """The checkpoint with the adapters of these folders beside its weights, added up where they share some."""
    device = checkpoint.params["norm.weight"].device
    found = [read_peft(folder, checkpoint.config) for folder in folders]
    params = stack(checkpoint.params, *({name: tensor.to(device) for name, tensor in one.items()} for one in found))
    same = all(params[name] is checkpoint.params[name] for name in ("tok_embeddings.weight", "output.weight"))
    config = replace(checkpoint.config, tied=checkpoint.config.tied and same)
    checkpoint = replace(checkpoint, params=params, config=config)
    for folder in folders:
        _warn_of_another_base(folder, checkpoint.path)
    _warn_of_untrained_tokens(folders, checkpoint)
    return checkpoint


def _warn_of_another_base(folder: Path, path: Path) -> None:
    """Say so where the name of the model that an adapter is for isn't in this one's, or the other way round."""
    base = text_field(
        read_json(folder / CONFIG_FILE, "PEFT's adapter_config.json"), "base_model_name_or_path", folder / CONFIG_FILE
    )
    if not base or Path(base).expanduser().resolve() == path.resolve():
        return
    ours = path.resolve()
    names = [base.rstrip("/").rpartition("/")[2], (ours.parent if ours.name == "original" else ours).name]
    wanted, got = (re.sub(r"[^a-z0-9]", "", name.lower()) for name in names)
    if wanted not in got and got not in wanted:
        log.warning("%s: an adapter for %s, the model is %s; the sizes fit, the answers may not", folder, base, path)


def _warn_of_untrained_tokens(folders: list[Path], checkpoint: Checkpoint) -> None:
    """Say so where a chat format is made of tokens that a base model never saw: Llama 3's base models have such.

    Their rows of the embedding are as they began, next to zero or all alike, and adapters of projections don't mend it.
    """
    tokenizer, params = checkpoint.tokenizer, checkpoint.params
    if tokenizer is None:
        return
    chats = [folder for folder in folders if _has_template(folder)] or folders * (tokenizer.chat_format is not None)
    ids = {name: id for name in CHAT_TOKENS if (id := tokenizer.special_tokens.get(name)) is not None}
    if tokenizer.chat_format == "template" and tokenizer.chat_template:
        ids = {name: id for name, id in ids.items() if name in tokenizer.chat_template.source}
    if not chats or not ids:
        return
    weight = stored(params, "tok_embeddings")
    rows = weight.floats(torch.tensor(list(ids.values()), device=weight.values.device), torch.float32)
    norms = torch.linalg.vector_norm(rows, dim=1)
    usual = torch.linalg.vector_norm(weight.floats(slice(0, 1024), torch.float32), dim=1).median()
    alike = (rows[:, None] == rows).all(-1).sum(1) > 1
    untrained = (norms < 0.01 * usual) | alike
    if names := [name for name, bad in zip(ids, untrained.tolist(), strict=True) if bad]:
        log.warning(
            "%s: its chat format has %s, whose embeddings were never trained in this model; answers may not end or "
            "make sense. Take the instruct model and an adapter of it",
            chats[0],
            ", ".join(names),
        )


def _has_template(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    inside = path.exists() and "chat_template" in read_json(path, "Hugging Face's tokenizer_config.json")
    return inside or (folder / "chat_template.jinja").exists()
