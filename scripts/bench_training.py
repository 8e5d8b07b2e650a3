"""How fast a training step is here, beside the same model in transformers, and what it keeps in memory.

    python scripts/bench_training.py --dim 384 --layers 8 --length 512 --batch 4

takes steps of both in turns (f32 weights and AdamW, the same random text) and prints medians of tokens/s, the share of
this machine's peak (MFU), their ratio, and the bytes that a forward pass keeps, with and without recomputing. Needs
pip install -e ".[parity]".
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

from llama3_scratch.errors import UsageError
from llama3_scratch.system import cli
from llama3_scratch.training import flags

OURS = "llama3_scratch"


def make_parser() -> cli.Parser:
    parser = cli.script("bench_training", __doc__)
    count = cli.number(int, minimum=1)
    flags.add_flags(parser, helps={"compile": "our step by torch.compile too"}, length=512, size=4, compile=False)
    for name, default, what in (
        ("dim", 384, "width"),
        ("layers", 8, "layers"),
        ("heads", 6, "query heads"),
        ("kv-heads", 2, "key/value heads"),
        ("vocab", 8192, "tokens of the vocabulary"),
        ("repeats", 7, "steps of each"),
    ):
        parser.add_argument(f"--{name}", type=count, default=default, metavar="N", help=f"{what} (%(default)s)")
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32", help="of the activations (%(default)s)")
    return parser


@cli.verb(make_parser)
def main(options: argparse.Namespace) -> int:
    import torch

    from llama3_scratch.config import Config, hidden_dim
    from llama3_scratch.data.batches import Batch
    from llama3_scratch.init import init
    from llama3_scratch.system.machine import peak_flops
    from llama3_scratch.training.compiled import compiled
    from llama3_scratch.training.flops import flops_per_token
    from llama3_scratch.training.loss import Wrap, next_token_loss, recomputed, unchanged
    from llama3_scratch.training.optimizer import adamw

    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise UsageError('transformers is missing: pip install -e ".[parity]"') from error

    config = Config(
        options.dim,
        options.layers,
        options.heads,
        options.kv_heads,
        options.vocab,
        hidden_dim(options.dim, 32),
        max_seq_len=options.length,
        tied=True,
    )
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    tokens_BT = torch.randint(options.vocab, (options.size, options.length + 1))
    batch = Batch(tokens_BT[:, :-1], tokens_BT[:, 1:], torch.zeros_like(tokens_BT[:, 1:]))
    params = {
        name: weight.requires_grad_() for name, weight in init(config, seed=0, std=0.02, embedding_std=0.02).items()
    }
    optimizer = adamw(params, lr=1e-4)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.dim,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            vocab_size=config.vocab_size,
            intermediate_size=config.hidden_dim,
            max_position_embeddings=options.length,
            tie_word_embeddings=True,
            use_cache=False,
        )
    )
    theirs_optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def ours_step(loss: Callable[..., torch.Tensor] = next_token_loss, wrap: Wrap = unchanged) -> None:
        (loss(params, config, batch, wrap=wrap, dtype=dtype) / batch.targets_BT.numel()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def theirs_step() -> None:
        with torch.autocast("cpu", dtype, enabled=options.dtype != "f32"):
            theirs(input_ids=batch.tokens_BT, labels=batch.tokens_BT).loss.backward()
        theirs_optimizer.step()
        theirs_optimizer.zero_grad(set_to_none=True)

    steps: dict[str, Callable[[], None]] = {
        OURS: ours_step,
        f"{OURS}, recomputing": partial(ours_step, wrap=recomputed),
        "transformers": theirs_step,
    }
    if options.compile:
        steps[f"{OURS}, compiled"] = partial(ours_step, compiled(next_token_loss))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(-1, options.repeats):  # the first warms up, uncounted
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - begun)
    tokens = options.size * options.length
    known = peak_flops()
    peak = known.get(options.dtype, known["f32"])
    print(f"{config.n_parameters / 1e6:.1f} million parameters, {tokens} tokens a step, {options.dtype}")
    for name, all_of_them in seconds.items():
        rate = tokens / median(all_of_them)
        print(f"{name}: {rate:,.0f} tokens/s, MFU {flops_per_token(config, options.length) * rate / peak:.0%}")
    print(f"ratio of medians: {median(seconds['transformers']) / median(seconds[OURS]):.2f}×")
    for recompute in (False, True):
        wrap = recomputed if recompute else unchanged
        kept = kept_bytes(partial(next_token_loss, params, config, batch, wrap=wrap, dtype=dtype))
        print(f"kept for the way back{', recomputing' if recompute else ''}: {kept / 1e6:.0f} MB")
    return 0


def kept_bytes(forward: Callable[[], object]) -> int:
    """Bytes of tensors that autograd keeps of a forward pass, the weights themselves left out."""
    import torch

    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_leaf or not tensor.requires_grad:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = forward()
    del kept
    return sum(storages.values())


if __name__ == "__main__":
    raise SystemExit(main())
