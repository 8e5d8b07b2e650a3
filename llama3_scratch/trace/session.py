"""`generate --trace` and its kin: the options, the watch over a run, and what is shown and written of it."""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama3_scratch.compare.hf_layers import require_transformers
from llama3_scratch.compare.tensor_names import ATTENTION_WEIGHTS
from llama3_scratch.errors import FileError, MismatchError, UsageError
from llama3_scratch.system import cli
from llama3_scratch.text.detokenizer import label

if TYPE_CHECKING:
    import torch

    from llama3_scratch.checkpoint.load import Checkpoint
    from llama3_scratch.config import Config
    from llama3_scratch.system.machine import MachineLimits
    from llama3_scratch.text.detokenizer import Detokenizer
    from llama3_scratch.trace.compare import Reference
    from llama3_scratch.trace.page import TracePage
    from llama3_scratch.trace.tracer import TracedTensor
    from llama3_scratch.trace.views import Looks

# The mean |difference| in standard deviations that still counts as rounding: ten times the largest that was seen on a
# trained model between passes in these dtypes and the next wider one.
ROUNDING = {"float64": 1e-9, "float32": 3e-5, "bfloat16": 0.3, "float16": 0.03}

log = logging.getLogger("llama3_scratch")


class Session:
    """A watch over the first passes of a run, from `start` until `passed` has heard of enough of them."""

    def __init__(
        self, options: argparse.Namespace, checkpoint: Checkpoint, dtype: torch.dtype, ids: Sequence[int], asked: str
    ) -> None:
        """`ids` are the first prompt's tokens, which the views are about, and `asked` is what it was made from."""
        import torch

        from llama3_scratch.checkpoint.load import weight_files
        from llama3_scratch.system.machine import measure
        from llama3_scratch.trace.table import Table

        config = checkpoint.config
        check_choices(options, config)
        self._options, self._checkpoint, self._dtype = options, checkpoint, dtype
        self._reference = _reference(options, checkpoint, dtype) if options.trace_compare else None
        self._machine = measure(torch.device(options.device), dtype) if options.trace_cost else None
        self._left = options.trace_tokens
        self._ids, self._asked = ids, asked
        self._answer: Detokenizer | None = None  # to the first prompt
        self._prompt_steps: int | None = None  # how many of the steps took the prompt in, once it's known
        layers = (0,) if options.trace_layers is None else options.trace_layers
        self._files = weight_files(checkpoint) if options.trace or options.trace_out else {}
        steps, values = options.trace_steps or (), options.trace_values
        self._table = Table(checkpoint.params, layers, steps, values, self._machine, self._files)
        self._stack = contextlib.ExitStack()
        self._steps: list[TracedTensor] = []
        self._looks: dict[int, Looks] = {}
        self._page = _page(options, checkpoint, self._files, len(ids))

    def start(self, answer: Detokenizer) -> None:
        """Watch from now on; `answer` is that to the first prompt, as it grows."""
        from llama3_scratch.trace.tracer import watch

        self._answer = answer
        log.info("tracing the readable attention and block, not the fused ones")
        self._steps = self._stack.enter_context(watch(keep=self._keep, costs=self._costs, on_step=self._show))

    @property
    def _costs(self) -> bool:
        out = self._options.trace_out
        return bool(self._options.trace_cost or (out is not None and out.suffix != ".safetensors"))

    @property
    def done(self) -> bool:
        """Whether all passes that were to be traced have been."""
        return self._left <= 0

    def passed(self) -> None:
        """One more pass has made its token. The first comes after all passes that a long prompt is taken in by."""
        if self._prompt_steps is None:
            self._prompt_steps = len(self._steps)
        self._left -= 1
        if self.done:
            self.close()

    def close(self) -> None:
        """Stop watching."""
        self._stack.close()

    def finish(self) -> None:
        """Stop watching; write the file and print the views."""
        from llama3_scratch.trace import files, roofline, views

        self.close()
        options, checkpoint = self._options, self._checkpoint
        if options.trace_out is not None:
            if self._page is not None:
                if self._answer is not None:
                    self._page.asked, self._page.answered = self._asked, self._answer.text
                    self._page.n_answered = len(self._answer.tokens)
                self._page.write(options.trace_out)
            else:
                files.write(options.trace_out, self._steps, checkpoint.params, self._files)
            log.info("%d steps written to %s", len(self._steps), options.trace_out)
        if self._machine is not None:
            show = _tell if options.json else _print
            first, later = ([s for s in self._steps if bool(s.call) == after] for after in (False, True))
            show(f"cost of pass 0 · {_limits(self._machine)}", roofline.lines(first, self._machine))
            if later:
                show(f"cost of passes 1 to {later[-1].call} together", roofline.lines(later, self._machine))
        of_prompt, length = self._steps[: self._prompt_steps], len(self._ids)
        if options.lens and checkpoint.tokenizer is not None:
            columns = max(60, shutil.get_terminal_size((120, 0)).columns)
            said = views.lens(
                of_prompt, checkpoint.params, checkpoint.config, checkpoint.tokenizer, self._ids, columns=columns
            )
            _print("logit lens", said)
        if options.attention is not None and checkpoint.tokenizer is not None:
            layer, head = options.attention
            labels = [label(id, checkpoint.tokenizer) for id in self._ids]
            _print("attention", views.attention(of_prompt, layer, head, labels))
        if self._looks:
            looks = [self._looks[layer] for layer in sorted(self._looks)]
            _print("the heads of each layer that look most at", views.heads(looks))
        if options.rope_pair is not None:
            _print(f"RoPE, pair {options.rope_pair}", views.rope_pair(of_prompt, options.rope_pair, length))
        if options.trace and options.trace_steps:
            self._table.say_unknown(self._steps)

    def compare(self) -> None:
        """Print the run beside the one that --trace-compare names. Raises MismatchError where they part."""
        from llama3_scratch.stored import dtype_name
        from llama3_scratch.trace import compare

        if self._reference is None:
            return
        other, options = self._reference, self._options
        log.info("comparing with %s", other.name)
        tolerance = options.trace_tolerance or max(ROUNDING[dtype_name(dtype)] for dtype in (self._dtype, other.dtype))
        rows = compare.compare(self._steps, other, tolerance)
        _print(f"this run and {other.name}", compare.lines(rows, self._table.full))
        first = compare.first_divergence(rows)
        if first is None:
            print(f"none of {len(rows)} steps differs by more than {tolerance:g} standard deviations in the mean")
            return
        parted = sum(row.diverges for row in rows)
        how = first.note or f"by {first.difference.mean:.3g} standard deviations in the mean (tolerance {tolerance:g})"
        line = f"; line {first.step.line} of {first.step.function}: {first.step.source}" if first.step else ""
        raise MismatchError(
            f"{first.difference.name} is the first step that differs from {other.name}: {how}; "
            f"{parted} of {len(rows)} steps do{line}"
        )

    def _show(self, step: TracedTensor) -> None:
        from llama3_scratch.trace import views

        if self._options.trace and not self._options.json:
            self._table.show(step)
        if self._page is not None:
            self._page.take(step)
        if self._looked(step) and step.value is not None and step.layer is not None:
            self._looks[step.layer] = views.look(self._looks.get(step.layer), step.value, len(self._ids))
        if not self._keep_whole(step):
            step.value = None

    def _keep(self, step: TracedTensor) -> bool:
        from llama3_scratch.trace import page

        return (self._page is not None and page.needs(step)) or self._looked(step) or self._keep_whole(step)

    def _looked(self, step: TracedTensor) -> bool:
        of_prompt = self._options.heads and self._prompt_steps is None
        return of_prompt and ATTENTION_WEIGHTS.matches(step)

    def _keep_whole(self, step: TracedTensor) -> bool:
        """Whether the step's tensor stays until the end of the run."""
        from llama3_scratch.trace import compare, views

        options = self._options
        chosen = options.trace_layers is not None or options.trace_steps
        wanted = self._table.full(step) if chosen else True
        if self._reference is not None and compare.needs(step) and (wanted or step.kind == "argument"):
            return True
        if options.trace_out is not None and options.trace_out.suffix == ".safetensors" and wanted:
            return True
        if options.trace_values and self._table.full(step):
            return True
        return views.needs(step, lens=options.lens, attention=options.attention, rope_pair=options.rope_pair)


def _reference(options: argparse.Namespace, checkpoint: Checkpoint, dtype: torch.dtype) -> Reference:
    """The run that --trace-compare names: a model is loaded, and what can't be is told, before anything is computed."""
    import torch

    from llama3_scratch.checkpoint.load import load
    from llama3_scratch.checkpoint.names import resolve
    from llama3_scratch.trace import compare

    name, params, config = options.trace_compare, checkpoint.params, checkpoint.config
    if name == "hf":
        if dtype not in (torch.float32, torch.float64) or torch.device(options.device).type != "cpu":
            raise UsageError("--trace-compare hf: expected --device cpu and --dtype float32 or float64")
        return compare.transformers(params, config, dtype)
    if name == "full":
        return compare.one_pass("one pass without a cache", params, config, dtype)
    if name in ROUNDING:
        return compare.one_pass(name, params, config, getattr(torch, name))
    if Path(name).suffix == ".safetensors":
        return compare.recorded(Path(name))
    other = load(resolve(name), device=torch.device(options.device), allow_extra=options.allow_extra)
    if other.config.vocab_size != config.vocab_size:
        sizes = f"{other.config.vocab_size} tokens, this model's {config.vocab_size}"
        raise UsageError(f"--trace-compare {name}: its vocabulary has {sizes}; the same text is no run of both")
    return compare.one_pass(name, other.params, other.config, dtype)


def _page(
    options: argparse.Namespace, checkpoint: Checkpoint, files: Mapping[str, str], length: int
) -> TracePage | None:
    """The page that --trace-out asks for, if it does, of a prompt of `length` tokens."""
    from llama3_scratch.inference.stream import CHUNK
    from llama3_scratch.trace.page import TracePage

    if options.trace_out is None or options.trace_out.suffix != ".html":
        return None
    return TracePage(
        checkpoint.params, checkpoint.config, checkpoint.tokenizer, checkpoint.path.name, files, -(-length // CHUNK)
    )


def trace_without_weights(options: argparse.Namespace, config: Config, length: int) -> None:
    """Print the steps, where --trace asks for them, and the sums of one pass of `length` tokens."""
    import torch

    from llama3_scratch.system.machine import measure
    from llama3_scratch.trace import files, shapes
    from llama3_scratch.trace.table import Table

    check_choices(options, config)
    if length > (context := options.max_seq_len or config.max_seq_len):
        raise UsageError(f"--length {length}: this model's context is {context} tokens")
    machine = measure(torch.device("cpu"), torch.float32) if options.trace_cost else None
    dtype = torch.bfloat16 if options.dtype == "auto" else getattr(torch, options.dtype)
    params, batch = shapes.meta_params(config), options.batch or 1
    layers = (0,) if options.trace_layers is None else options.trace_layers
    table = Table(params, layers, options.trace_steps or (), machine=machine)
    show = {"on_step": table.show} if options.trace else {}
    steps = shapes.trace_shapes(params, config, length=length, batch=batch, dtype=dtype, **show)
    if options.trace_out is not None:
        files.write(options.trace_out, steps, params, {})
    if options.trace_steps:
        table.say_unknown(steps)
    limits = f" · {_limits(machine)}" if machine is not None else ""
    _print(f"{batch} × {length} tokens{limits}", shapes.summary(config, steps, context, batch, machine))


def add_trace_options(parser: cli.Parser) -> None:
    group = parser.add_argument_group("trace: every tensor of the model as its own lines of code make it")
    group.add_argument("--trace", action="store_true", help="print every step: layer 0 in full, a line for each other")
    group.add_argument("--trace-layers", type=_whole_numbers, metavar="N,…", help="the layers to print in full")
    group.add_argument("--trace-steps", type=_names, metavar="NAME,…", help="the tensors to print, as q_BTHK")
    group.add_argument(
        "--trace-tokens",
        type=cli.number(int, least=1),
        default=1,
        metavar="N",
        help="trace the passes that make the first N tokens (%(default)s: the prompt's)",
    )
    group.add_argument("--trace-values", action="store_true", help="print the tensors' values too")
    group.add_argument(
        "--trace-cost",
        action="store_true",
        help="print what each step, function and layer took, beside this machine's limits",
    )
    group.add_argument(
        "--trace-out",
        type=Path,
        metavar="FILE",
        help="write the steps to FILE.jsonl, their tensors to FILE.safetensors, or a page for the browser to FILE.html "
        "(the prompt's pass, and with --trace-tokens the later ones to choose from; of a long prompt its first tokens "
        "and its last)",
    )
    group.add_argument(
        "--trace-compare",
        metavar="WITH",
        help="this run beside another, step by step, and where they part: hf (transformers), full (one pass without a "
        f"cache), {', '.join(ROUNDING)}, another model's PATH|NAME, or what --trace-out wrote to FILE.safetensors",
    )
    group.add_argument(
        "--trace-tolerance",
        type=cli.number(float, above=0),
        metavar="X",
        help="with --trace-compare: the mean |difference| in standard deviations that still counts as rounding ("
        + ", ".join(f"{value:g} in {dtype}" for dtype, value in ROUNDING.items())
        + "; of two dtypes, the coarser one's)",
    )
    group.add_argument("--lens", action="store_true", help="the likeliest tokens after each layer, at every position")
    group.add_argument("--attention", type=_pair, metavar="LAYER,HEAD", help="a head's scores and weights")
    group.add_argument(
        "--heads",
        action="store_true",
        help="of each layer the heads that look most at the first token, at itself and at the one before",
    )
    group.add_argument("--rope-pair", type=cli.number(int, least=0), metavar="J", help="a pair's turn at each position")

    group.add_argument(
        "--no-weights", action="store_true", help="shapes and costs alone, of any official size or described model"
    )
    group.add_argument("--length", type=cli.number(int, least=1), metavar="N", help="tokens, with --no-weights")


def asks_for_trace(options: argparse.Namespace) -> bool:
    """Whether any option asks for a trace; those that choose what --trace prints imply it."""
    chooses = options.trace_layers is not None or options.trace_steps or options.trace_values or options.trace_cost
    options.trace = bool(options.trace or chooses)
    if options.trace and options.json and options.trace_out is None:
        raise UsageError("--trace prints for people and --json for machines; with --json take --trace-out FILE.jsonl")
    views = options.lens or options.heads or options.attention is not None or options.rope_pair is not None
    if views and options.json:
        raise UsageError("--lens, --attention, --heads and --rope-pair print for people; leave --json out")
    if not options.no_weights and options.length:
        raise UsageError("--length goes with --no-weights")
    if options.length and _any_prompt(options):
        raise UsageError("--length stands in the place of a prompt; give one of the two")
    if options.no_weights and (views or options.trace_values or options.json or options.trace_tokens != 1):
        raise UsageError(
            "--no-weights has shapes and costs only: no values, no views, no further tokens, no JSON object"
        )
    if options.no_weights and options.rope_scale_factor is not None:
        raise UsageError("--rope-scale-factor changes numbers, --no-weights has only shapes; leave one of them out")
    if options.no_weights:
        idle = {
            "--logprobs": options.logprobs is not None,
            "--device": options.device != "cpu",
            "--adapter": options.adapter,
            "--speculate": options.speculate,
            "--prompt-cache": options.prompt_cache,
            "--sliding": options.sliding,
        }
        if flag := next((flag for flag, given in idle.items() if given), None):
            raise UsageError(f"{flag} is for a model that runs, --no-weights runs none; leave one of them out")
    if options.trace_tolerance and not options.trace_compare:
        raise UsageError("--trace-tolerance goes with --trace-compare")
    if options.trace_compare:
        if options.json or options.no_weights:
            raise UsageError("--trace-compare prints numbers for people; leave --json and --no-weights out")
        if options.trace_compare == "hf":
            require_transformers("--trace-compare hf")
    if options.trace_out is not None:
        check_writable(options.trace_out)
        if options.no_weights and options.trace_out.suffix != ".jsonl":
            raise UsageError(
                f"--trace-out {options.trace_out}: it holds values, which --no-weights has none of; "
                "take --trace-out FILE.jsonl"
            )
    if options.trace_tokens != 1 and not (options.trace or options.trace_out or options.trace_compare):
        raise UsageError("--trace-tokens goes with --trace, --trace-out or --trace-compare")
    return bool(options.trace or views or options.trace_out or options.trace_compare)


def check_number(options: argparse.Namespace, n_prompts: int) -> None:
    """Raise UsageError for several prompts where one alone can be shown."""
    if options.trace_compare and n_prompts > 1:
        raise UsageError("--trace-compare takes one prompt")
    if options.trace_out is not None and options.trace_out.suffix == ".html" and n_prompts > 1:
        raise UsageError("a page shows one prompt; give only one with --trace-out FILE.html")


def _any_prompt(options: argparse.Namespace) -> bool:
    given = (options.prompt, options.prompt_file, options.prompts_file)
    return bool(options.prompts) or any(one is not None for one in given)


def check_writable(path: Path) -> None:
    """Raise before anything is computed where the trace couldn't be written: UsageError, FileError."""
    if path.suffix not in (".jsonl", ".safetensors", ".html"):
        raise UsageError(f"--trace-out {path}: expected a name that ends in .jsonl, .safetensors or .html")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise FileError(f"{path}: can't be written: {'is a folder' if path.is_dir() else 'its folder is not there'}")
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise FileError(f"{path}: can't be written: {error.strerror}") from error


def check_choices(options: argparse.Namespace, config: Config) -> None:
    """Raise UsageError for a layer, a head or a pair that the model hasn't."""
    layers = [*(options.trace_layers or ()), *([options.attention[0]] if options.attention else [])]
    for layer in layers:
        if layer >= config.n_layers:
            raise UsageError(f"layer {layer}: this model's {config.n_layers} layers are 0 to {config.n_layers - 1}")
    if options.attention and options.attention[1] >= config.n_heads:
        raise UsageError(f"--attention: head {options.attention[1]}, the heads are 0 to {config.n_heads - 1}")
    if options.rope_pair is not None and options.rope_pair >= config.head_dim // 2:
        raise UsageError(f"--rope-pair {options.rope_pair}: the pairs are 0 to {config.head_dim // 2 - 1}")


def _limits(machine: MachineLimits) -> str:
    return f"this machine reads {machine.bandwidth / 1e9:.1f} GB/s, does {machine.flops / 1e9:.1f} GFLOP/s"


def _print(title: str, lines: Iterable[str]) -> None:
    print(f"\n── {title} ──", *lines, sep="\n")


def _tell(title: str, lines: Iterable[str]) -> None:
    """`_print` on stderr, where stdout is a machine's."""
    log.info("\n%s", "\n".join([f"── {title} ──", *lines]))


def _whole_numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = (-1,)
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between them, got {text!r}")
    return numbers


def _pair(text: str) -> tuple[int, int]:
    numbers = _whole_numbers(text)
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"expected LAYER,HEAD, got {text!r}")
    return numbers[0], numbers[1]


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if not names:
        raise argparse.ArgumentTypeError(f"expected names of tensors with commas between them, got {text!r}")
    return names
