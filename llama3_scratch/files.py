"""Where the file checks lay before they became the tokenizer's too."""

from llama3_scratch.files import *  # noqa: F403
