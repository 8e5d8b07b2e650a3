"""A watch over the first passes of a run, and what is printed and written of it: `generate --trace` and its kin."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llama3_scratch.compare.tensor_names import ATTENTION_WEIGHTS
from llama3_scratch.errors import MismatchError
from llama3_scratch.text.detokenizer import label
from llama3_scratch.trace.choice import ROUNDING, TraceChoice

if TYPE_CHECKING:
    import torch

    from llama3_scratch.checkpoint.load import Checkpoint
    from llama3_scratch.text.detokenizer import Detokenizer
    from llama3_scratch.trace.page import TracePage
    from llama3_scratch.trace.tracer import TracedTensor
    from llama3_scratch.trace.views import PlaceShares

log = logging.getLogger("llama3_scratch")


class TraceSession:
    """A watch over the first passes of a run, from `start` until `passed` has heard of enough of them."""

    def __init__(
        self,
        choice: TraceChoice,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        ids: Sequence[int],
        asked: str,
        *,
        allow_extra: bool = False,
        json: bool = False,
    ) -> None:
        """`ids` are the first prompt's tokens, which the views are about, and `asked` is what it was made from.

        `allow_extra` is for the model that the run is compared with. With `json` stdout is a machine's: no steps are
        printed, and costs go to stderr. Raises UsageError for what this model hasn't, FileError for what can't be read.
        """
        from llama3_scratch.checkpoint.load import weight_files
        from llama3_scratch.system.machine import measure
        from llama3_scratch.trace.references import reference
        from llama3_scratch.trace.table import Table

        choice.check_model(checkpoint.config)
        device = checkpoint.params["tok_embeddings.weight"].device
        self._choice, self._checkpoint, self._dtype, self._json = choice, checkpoint, dtype, json
        compared = choice.trace_compare
        self._reference = reference(compared, checkpoint, dtype, allow_extra=allow_extra) if compared else None
        self._machine = measure(device, dtype) if choice.trace_cost else None
        self._passes_left = choice.trace_tokens
        self._ids, self._asked = ids, asked
        self._answer: Detokenizer | None = None  # to the first prompt
        self._prompt_steps: int | None = None  # how many of the steps took the prompt in, once it's known
        self._files = weight_files(checkpoint) if choice.prints or choice.trace_out else {}
        self._table = Table(
            checkpoint.params,
            choice.full_layers,
            choice.trace_steps,
            choice.trace_values,
            self._machine,
            self._files,
        )
        self._stack = contextlib.ExitStack()
        self._steps: list[TracedTensor] = []
        self._shares: dict[int, PlaceShares] = {}  # by layer
        self._page = _page(checkpoint, self._files, len(ids)) if choice.writes(".html") else None

    def start(self, answer: Detokenizer) -> None:
        """Watch from now on; `answer` is that to the first prompt, as it grows."""
        from llama3_scratch.trace.tracer import watch

        self._answer = answer
        log.info("tracing the readable attention and block, not the fused ones")
        costs = self._choice.trace_cost or self._choice.writes(".jsonl") or self._choice.writes(".html")
        self._steps = self._stack.enter_context(watch(keep=self._keep, costs=costs, on_step=self._show))

    @property
    def done(self) -> bool:
        """Whether all passes that were to be traced have been."""
        return self._passes_left <= 0

    def passed(self) -> None:
        """One more pass has made its token. The first comes after all passes that a long prompt is taken in by."""
        if self._prompt_steps is None:
            self._prompt_steps = len(self._steps)
        self._passes_left -= 1
        if self.done:
            self.close()

    def close(self) -> None:
        """Stop watching."""
        self._stack.close()

    def finish(self) -> None:
        """Stop watching; write the file, print costs and views."""
        self.close()
        self._write()
        self._print_costs()
        self._print_views()
        if self._choice.prints and self._choice.trace_steps:
            self._table.say_unknown(self._steps)

    def _write(self) -> None:
        from llama3_scratch.trace import files

        path = self._choice.trace_out
        if path is None:
            return
        if self._page is not None:
            if self._answer is not None:
                self._page.asked, self._page.answered = self._asked, self._answer.text
                self._page.n_answered = len(self._answer.tokens)
            self._page.write(path)
        else:
            files.write(path, self._steps, self._checkpoint.params, self._files)
        log.info("%d steps written to %s", len(self._steps), path)

    def _print_costs(self) -> None:
        from llama3_scratch.trace import roofline
        from llama3_scratch.trace.table import log_section, print_section

        if self._machine is None:
            return
        show = log_section if self._json else print_section
        first, later = ([s for s in self._steps if bool(s.call) == after] for after in (False, True))
        show(f"cost of pass 0 · {self._machine}", roofline.lines(first, self._machine))
        if later:
            show(f"cost of passes 1 to {later[-1].call} together", roofline.lines(later, self._machine))

    def _print_views(self) -> None:
        from llama3_scratch.trace import views
        from llama3_scratch.trace.table import print_section

        choice, checkpoint, tokenizer = self._choice, self._checkpoint, self._checkpoint.tokenizer
        of_prompt = self._steps[: self._prompt_steps]
        if choice.lens and tokenizer is not None:
            columns = max(60, shutil.get_terminal_size((120, 0)).columns)
            lens = views.lens(of_prompt, checkpoint.params, checkpoint.config, tokenizer, self._ids, columns=columns)
            print_section("logit lens", lens)
        if choice.attention is not None and tokenizer is not None:
            labels = [label(id, tokenizer) for id in self._ids]
            print_section("attention", views.attention(of_prompt, *choice.attention, labels))
        if self._shares:
            shares = [self._shares[layer] for layer in sorted(self._shares)]
            print_section("the heads of each layer that look most at", views.heads(shares))
        if choice.rope_pair is not None:
            turns = views.rope_pair(of_prompt, choice.rope_pair, len(self._ids))
            print_section(f"RoPE, pair {choice.rope_pair}", turns)

    def compare(self) -> None:
        """Print the run beside the one that it is compared with. Raises MismatchError where they part."""
        from llama3_scratch.stored import dtype_name
        from llama3_scratch.trace import compare
        from llama3_scratch.trace.table import print_section

        if self._reference is None:
            return
        other = self._reference
        log.info("comparing with %s", other.name)
        rounding = max(ROUNDING[dtype_name(dtype)] for dtype in (self._dtype, other.dtype))
        tolerance = self._choice.trace_tolerance or rounding
        rows = compare.compare(self._steps, other, tolerance)
        print_section(f"this run and {other.name}", compare.lines(rows, self._table.full))
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

        if self._choice.prints and not self._json:
            self._table.show(step)
        if self._page is not None:
            self._page.take(step)
        if self._counts(step) and step.value is not None and step.layer is not None:
            before = self._shares.get(step.layer)
            self._shares[step.layer] = views.with_pass(before, step.value, len(self._ids))
        if not self._keep_whole(step):
            step.value = None

    def _keep(self, step: TracedTensor) -> bool:
        from llama3_scratch.trace import page

        return (self._page is not None and page.needs(step)) or self._counts(step) or self._keep_whole(step)

    def _counts(self, step: TracedTensor) -> bool:
        """Whether the step counts for where the heads look: the weights of the passes that take the prompt in."""
        return self._choice.heads and self._prompt_steps is None and ATTENTION_WEIGHTS.matches(step)

    def _keep_whole(self, step: TracedTensor) -> bool:
        """Whether the step's tensor stays until the end of the run."""
        from llama3_scratch.trace import compare, views

        choice = self._choice
        chosen = choice.trace_layers is not None or choice.trace_steps
        wanted = self._table.full(step) if chosen else True
        if self._reference is not None and compare.needs(step) and (wanted or step.kind == "argument"):
            return True
        if choice.writes(".safetensors") and wanted:
            return True
        if choice.trace_values and self._table.full(step):
            return True
        return views.needs(step, lens=choice.lens, attention=choice.attention, rope_pair=choice.rope_pair)


def _page(checkpoint: Checkpoint, files: Mapping[str, str], length: int) -> TracePage:
    """The page of a prompt of `length` tokens."""
    from llama3_scratch.inference.prefill import CHUNK
    from llama3_scratch.trace.page import TracePage

    return TracePage(
        checkpoint.params, checkpoint.config, checkpoint.tokenizer, checkpoint.path.name, files, -(-length // CHUNK)
    )
