"""A prompt cache's file over several runs: each begins with what it holds, and none loses any of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama3_scratch.errors import FileError
from llama3_scratch.system.files import require_utf8_name

if TYPE_CHECKING:
    import torch

    from llama3_scratch.cache import Cache
    from llama3_scratch.checkpoint.load import Checkpoint

log = logging.getLogger("llama3_scratch")


def check_path(path: Path) -> None:
    """Raise, before a model is loaded, where no such file could be written: UsageError, FileError."""
    require_utf8_name(path)
    if not path.parent.is_dir():
        raise FileError(f"{path}: there is no folder {path.parent} to write it in")


class PromptCacheFile:
    """The file at `path` for one model; `known` are the tokens that it holds."""

    def __init__(self, path: Path, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        self.path, self.known = path, list[int]()
        self._checkpoint, self._dtype = checkpoint, dtype

    def fill(self, cache: Cache) -> list[int]:
        """Fill the empty cache with what the file holds, if it's there; the tokens."""
        from llama3_scratch.caches import prompt_cache

        if self.path.exists():
            params, config = self._checkpoint.params, self._checkpoint.config
            self.known = prompt_cache.load(
                self.path, cache, params, config, self._dtype, origin=self._checkpoint.origin
            )
        return self.known

    def begin(self, cache: Cache, prompt: Sequence[int]) -> None:
        """Fill the empty cache with what the file holds of the prompt."""
        from llama3_scratch.caches import prompt_cache

        if not self.fill(cache):
            return
        # The last token is computed anew: its logits are nowhere kept.
        cache.rewind(min(prompt_cache.common_prefix(self.known, prompt), len(prompt) - 1))
        log.info("%d of %d tokens of the prompt from %s", cache.length, len(prompt), self.path)

    def keep(self, cache: Cache, seen: Sequence[int], wanted: int) -> None:
        """Write the cache, which holds a beginning of `seen`, unless that would lose any of the tokens in the file.

        Of these, the first `wanted` are the prompt: a warning tells where they are neither there nor written.
        """
        from llama3_scratch.caches import prompt_cache

        if not cache.length:
            return
        shared = prompt_cache.common_prefix(self.known, seen[: cache.length])
        if shared == len(self.known) < cache.length:
            params, config = self._checkpoint.params, self._checkpoint.config
            prompt_cache.save(self.path, cache, seen, params, config, self._dtype, origin=self._checkpoint.origin)
        elif shared < min(wanted, cache.length):
            log.warning(
                "%s holds another prompt, like this one for %d of %d tokens, and stays as it is; "
                "take another file to keep this one too",
                self.path,
                shared,
                wanted,
            )
