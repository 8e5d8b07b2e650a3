"""What of a run is traced, shown and written: a small frozen value, checked as it is made. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llama3_scratch.config import Config
from llama3_scratch.errors import UsageError
from llama3_scratch.system.fields import Checked, number, switch, text, whole

# The mean |difference| in standard deviations that still counts as rounding: ten times the largest that was seen on a
# trained model between passes in these dtypes and the next wider one.
ROUNDING = {"float64": 1e-9, "float32": 3e-5, "bfloat16": 0.3, "float16": 0.03}

FILE_ENDINGS = (".jsonl", ".safetensors", ".html")


@dataclass(frozen=True)
class TraceChoice(Checked):
    """Which steps of a run are printed, written or compared, and which views are shown; as it stands, nothing is."""

    trace: bool = switch()  # print every step: those of `trace_layers` in full, of every other layer its output
    trace_layers: tuple[int, ...] | None = None  # the first alone
    trace_steps: tuple[str, ...] = ()  # the tensors to print by name, all where there is none
    trace_tokens: int = whole(1, minimum=1)  # the passes that make the first so many tokens
    trace_values: bool = switch()  # print the tensors too
    trace_cost: bool = switch()  # print what each step, function and layer took
    trace_out: Path | None = None  # a file with one of FILE_ENDINGS
    trace_compare: str | None = text()  # "hf", "full", a dtype of ROUNDING, a model, or a FILE.safetensors
    trace_tolerance: float | None = number(None, above=0)  # mean |difference| in standard deviations; else ROUNDING's
    lens: bool = switch()  # the likeliest tokens after each layer
    attention: tuple[int, int] | None = None  # (layer, head) whose scores and weights are shown
    heads: bool = switch()  # of each layer the heads that attend most to some places
    rope_pair: int | None = whole(None, minimum=0)  # the pair of each head whose turns are shown

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trace_out is not None and self.trace_out.suffix not in FILE_ENDINGS:
            *others, last = FILE_ENDINGS
            wanted = f"{', '.join(others)} or {last}"
            raise UsageError(f"`trace_out={self.trace_out}`: expected a name that ends in {wanted}")
        if self.trace_tolerance and not self.trace_compare:
            raise UsageError("`trace_tolerance` goes with `trace_compare`")
        if self.trace_tokens != 1 and not (self.prints or self.trace_out or self.trace_compare):
            raise UsageError("`trace_tokens` goes with `trace`, `trace_out` or `trace_compare`")

    @property
    def prints(self) -> bool:
        """Whether steps are printed; what chooses among them implies it."""
        chosen = self.trace_layers is not None or bool(self.trace_steps)
        return self.trace or chosen or self.trace_values or self.trace_cost

    @property
    def views(self) -> bool:
        """Whether any view of the prompt's pass is shown."""
        return self.lens or self.heads or self.attention is not None or self.rope_pair is not None

    @property
    def watches(self) -> bool:
        """Whether anything asks for a run to be traced."""
        return self.prints or self.views or self.trace_out is not None or self.trace_compare is not None

    @property
    def full_layers(self) -> tuple[int, ...]:
        """The layers whose steps are printed each."""
        return (0,) if self.trace_layers is None else self.trace_layers

    def writes(self, ending: str) -> bool:
        """Whether the steps go to a file with this ending."""
        return self.trace_out is not None and self.trace_out.suffix == ending

    def check_model(self, config: Config) -> None:
        """Raise UsageError for a layer, a head or a pair that the model hasn't."""
        for layer in [*(self.trace_layers or ()), *(self.attention or ())[:1]]:
            if layer >= config.n_layers:
                raise UsageError(f"layer {layer}: this model's {config.n_layers} layers are 0 to {config.n_layers - 1}")
        if self.attention and self.attention[1] >= config.n_heads:
            raise UsageError(f"`attention`: head {self.attention[1]}, the heads are 0 to {config.n_heads - 1}")
        if self.rope_pair is not None and self.rope_pair >= config.head_dim // 2:
            raise UsageError(f"`rope_pair={self.rope_pair}`: the pairs are 0 to {config.head_dim // 2 - 1}")

    def check_prompts(self, n_prompts: int) -> None:
        """Raise UsageError for several prompts where one alone can be shown."""
        if self.trace_compare and n_prompts > 1:
            raise UsageError("`trace_compare` takes one prompt")
        if self.writes(".html") and n_prompts > 1:
            raise UsageError("a page shows one prompt; give only one with `trace_out=FILE.html`")
