"""The tensors of the model that the trace, its page, the pictures and the comparisons know by name, in one table.

Each is named by the function of model.py that makes it. A test holds the table against the model, so that a tensor that
is renamed there fails that test and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Step(Protocol):
    """What is asked of a step of a trace (`trace.tracer.TracedTensor`)."""

    @property
    def kind(self) -> str: ...
    @property
    def function(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def nth(self) -> int: ...


@dataclass(frozen=True)
class ModelTensor:
    """A tensor that `function` takes as an argument, binds to the local `name`, or returns (then "return" is its name).

    `nth` is 2 for the one that takes the name over from another (q turned by RoPE is `q_BTHK` again), and 0 for any.
    """

    function: str
    name: str
    kind: str = "local"
    nth: int = 1

    def matches(self, step: Step) -> bool:
        """Whether the step is of this tensor."""
        nth = self.nth in (0, step.nth)
        return nth and (step.function, step.name, step.kind) == (self.function, self.name, self.kind)

    def key(self, path: str = "") -> str:
        """The step's key within its pass, `path` being where the function works: `layers.0.attention`."""
        return step_key(path, self.function, self.name, max(self.nth, 1))


def step_key(path: str, function: str, name: str, nth: int) -> str:
    """`layers.0.attention.q_BTHK`, then `layers.0.attention.q_BTHK.2`; the function's name where the path lacks it."""
    parts = [path, *([function] if function not in path.split(".") else []), name]
    return ".".join(part for part in [*parts, str(nth) if nth > 1 else ""] if part)


# In the order of a pass. Before the layers:
TOKENS = ModelTensor("embed", "tokens_BT", "argument")
EMBEDDED = ModelTensor("embed", "rows_BTD")
LAYERS_INPUT = ModelTensor("decode", "x_BTD", "argument")
POSITIONS = ModelTensor("decode", "positions_BT")
ANGLES = ModelTensor("rotations", "angles_BTJ")
MASK = ModelTensor(
    "decode", "mask_BTS"
)  # where there is one: most often a word says it, which every attention spells out
ROTATION = ModelTensor("decode", "rotation_BTJ")

# In a layer:
ATTENTION_NORMED = ModelTensor("block", "normed_BTD")
QUERIES = ModelTensor("attention", "q_BTHK")
KEYS = ModelTensor("attention", "k_BTGK")
VALUES = ModelTensor("attention", "v_BTGK")
TURNED_QUERIES = ModelTensor("attention", "q_BTHK", nth=2)  # by RoPE
TURNED_KEYS = ModelTensor("attention", "k_BTGK", nth=2)
SCORES = ModelTensor("attend", "scores_BGRTS")
MASKED_SCORES = ModelTensor("attend", "masked_BGRTS")
ATTENTION_WEIGHTS = ModelTensor("attend", "weights_BGRTS")
ATTENTION_HEADS = ModelTensor("attention", "out_BTGRK")  # each head's mean of the values
ATTENDED = ModelTensor("block", "attended_BTD")
AFTER_ATTENTION = ModelTensor("block", "x_BTD", nth=2)  # the residual stream in the middle of the layer
FFN_NORMED = ModelTensor("block", "normed_BTD", nth=2)
GATE = ModelTensor("swiglu", "gate_BTF")
UP = ModelTensor("swiglu", "up_BTF")
HIDDEN = ModelTensor("swiglu", "hidden_BTF")
FED = ModelTensor("block", "fed_BTD")
LAYER_OUTPUT = ModelTensor("block", "return", "return")

# Between the layers and after them:
HANDED_ON = ModelTensor("decode", "x_BTD", nth=0)  # a layer's output, as the next one's input
NORMED_OUTPUT = ModelTensor("decode", "return", "return")
LOGITS = ModelTensor("unembed", "logits_BTV")

MODEL_TENSORS = {name: value for name, value in vars().items() if isinstance(value, ModelTensor)}

# Functions of which all steps are meant. What passes through `forward` is what the functions that it calls made.
FORWARD, ATTEND, EMBED, DECODE, UNEMBED = "forward", "attend", "embed", "decode", "unembed"
LINEAR = "linear"  # the multiplication by a stored weight, as a line of the model calls it
