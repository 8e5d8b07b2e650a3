"""LoRA's first steps here and in transformers with PEFT: the same losses, and how long each takes.

    python scripts/bench_finetune.py --data tests/data/instructions.jsonl --steps 30

gives both the same weights, adapters, conversations and AdamW, lets them take each step in turns, and prints the
largest difference of a loss and the medians of the times. Needs pip install -e ".[parity]".
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from llama3_scratch.checkpoint.names import DEFAULT
from llama3_scratch.errors import UsageError
from llama3_scratch.inference.choices import ModelChoice
from llama3_scratch.system import cli
from llama3_scratch.training import flags


def make_parser() -> cli.Parser:
    parser = cli.script("bench_finetune", __doc__)
    parser.add_argument("--model", default=DEFAULT, metavar="PATH|NAME", help="(%(default)s)")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="conversations")
    flags.add_flags(parser, helps={"size": "conversations a step (%(default)s)"}, steps=30, size=4, rank=16, lr=2e-4)
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    import torch
    import torch.nn.functional as F

    try:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise UsageError(f'{error.name} is missing: pip install -e ".[parity]"') from error

    from llama3_scratch.checkpoint.hf_out import write_hf
    from llama3_scratch.checkpoint.peft_out import write_peft
    from llama3_scratch.data.batches import IGNORE, Batch
    from llama3_scratch.data.conversation_batches import encode
    from llama3_scratch.data.conversations import read_conversations
    from llama3_scratch.inference.loading import open_model
    from llama3_scratch.params.lora import attach, trainable
    from llama3_scratch.training.loss import next_token_loss
    from llama3_scratch.training.optimizer import adamw

    checkpoint, _ = open_model(ModelChoice(options.model), as_floats=True)
    config, tokenizer = checkpoint.config, checkpoint.require_tokenizer()
    if tokenizer.chat_format is None:
        raise UsageError(f"{options.model}: expected a model that chats")
    params = attach(checkpoint.params, config, rank=options.rank, alpha=2.0 * options.rank, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        write_hf(Path(folder) / "model", checkpoint.params, config, tokenizer)
        write_peft(Path(folder) / "adapter", params, config)
        base = AutoModelForCausalLM.from_pretrained(Path(folder) / "model", dtype=torch.float32)
        theirs = PeftModel.from_pretrained(base, Path(folder) / "adapter", is_trainable=True)
    learning = {name: tensor.requires_grad_() for name, tensor in trainable(params).items()}
    ours_optimizer = adamw(learning, lr=options.lr, weight_decay=0.0)
    their_tensors = [tensor for tensor in theirs.parameters() if tensor.requires_grad]
    settings = {"lr": options.lr, "betas": (0.9, 0.95), "weight_decay": 0.0}
    theirs_optimizer = torch.optim.AdamW(their_tensors, fused=True, **settings)

    def ours_step(batch: Batch, targets: int) -> float:
        loss = next_token_loss(params, config, batch) / targets
        loss.backward()
        ours_optimizer.step()
        ours_optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def theirs_step(batch: Batch, targets: int) -> float:
        logits_BTV = theirs(input_ids=batch.tokens_BT).logits
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), batch.targets_BT.flatten(), ignore_index=IGNORE)
        loss.backward()
        theirs_optimizer.step()
        theirs_optimizer.zero_grad(set_to_none=True)
        return loss.item()

    encoded = [encode(messages, tokenizer) for messages in read_conversations(options.data)]
    seconds: tuple[list[float], list[float]] = ([], [])
    worst = 0.0
    for step in range(options.steps):
        some = [encoded[(step * options.size + i) % len(encoded)] for i in range(options.size)]
        longest = max(len(one.ids) for one in some) - 1
        tokens_BT = torch.zeros(len(some), longest, dtype=torch.long)
        targets_BT = torch.full_like(tokens_BT, IGNORE)
        for row, one in enumerate(some):
            ids, is_target = torch.tensor(one.ids), torch.tensor(one.is_target)
            tokens_BT[row, : len(ids) - 1] = ids[:-1]
            targets_BT[row, : len(ids) - 1] = torch.where(is_target[1:], ids[1:], IGNORE)
        batch = Batch(tokens_BT, targets_BT, torch.zeros_like(tokens_BT))
        targets = int((targets_BT != IGNORE).sum())
        losses = []
        for which, take in enumerate((ours_step, theirs_step)):
            begun = time.perf_counter()
            losses.append(take(batch, targets))
            seconds[which].append(time.perf_counter() - begun)
        worst = max(worst, abs(losses[0] - losses[1]))
        print(f"step {step + 1}: {losses[0]:.5f} here, {losses[1]:.5f} there", flush=True)
    ours, others = map(median, seconds)
    print(f"largest difference of a loss {worst:.1e}")
    print(f"a step takes {ours:.2f} s here, {others:.2f} s there: {others / ours:.2f}×")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
