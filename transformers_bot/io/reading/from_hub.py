"""What the Hub answers, in one sentence that says which model, why, and what to do."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ...errors import BoTError, HubError
from .paths import clean, shown

LOG_IN = "log in with `hf auth login`, or pass token="


@contextmanager
def from_hub(name: str, revision: object = None) -> Iterator[None]:
    """Around whatever fetches files of `name`: what goes wrong there is a `HubError`; a folder's errors pass.

    The causes are transformers' and the HTTP client's own frames, which say nothing to a caller.
    """
    try:
        yield
    except BoTError:
        raise
    except (OSError, HFValidationError) as error:
        if os.path.exists(name):
            raise
        raise HubError(_sentence(name, revision, error)) from None


def _sentence(name: str, revision: object, error: Exception) -> str:
    causes = list(_causes(error))

    def is_a(*kinds: type[Exception]) -> bool:
        return any(isinstance(one, kinds) for one in causes)

    who = shown(name)
    if is_a(HFValidationError):
        return f"{who} is no folder here, and no name that a model on the Hub can have (OWNER/NAME). Correct it."
    if is_a(GatedRepoError):
        page = f"{constants.ENDPOINT}/{name}"
        return f"{who} is a gated model of the Hub: ask for access at {page}, then {LOG_IN}."
    if is_a(RevisionNotFoundError):
        return f"{who} has no revision {shown(revision)} on the Hub: name a branch, tag or commit that it has."
    if is_a(RepositoryNotFoundError):
        return f"{who} is no folder here, and no model of the Hub that you can see. If it is private, {LOG_IN}."
    offline = is_a(OfflineModeIsEnabled) or constants.is_offline_mode()
    if is_a(LocalEntryNotFoundError, OfflineModeIsEnabled):
        why = "offline mode is on" if offline else "the Hub cannot be reached, or local_files_only=True forbids it"
        return f"{who} is no folder here and not whole in the Hub's cache, and {why}. Connect, or name a folder."
    if is_a(EntryNotFoundError):
        return f"{who} lacks a file on the Hub: {clean(str(error))}"
    return f"{who} is no folder here, and fetching it from the Hub failed: {clean(str(error))}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
