"""Send a model folder or an exported folder, with its card, to the Hugging Face hub."""

import re
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import LocalTokenNotFoundError

from mclip_kit.errors import CheckpointError, first_line
from mclip_kit.layout import DAMAGED_CARD


def is_repo(name: str) -> bool:
    """Whether a name is ORG/NAME, as the hub's repositories are."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def check_repo(repo: str) -> None:
    """CheckpointError if a name is not ORG/NAME, or the hub is switched off; before anything is computed."""
    if not is_repo(repo):
        raise CheckpointError(f"{repo}: give ORG/NAME, a repository of the Hugging Face hub")
    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"{repo}: the hub is switched off; unset HF_HUB_OFFLINE to push")


def push(folder: Path, repo: str) -> str:
    """Upload a folder into a repository, which is made if it does not exist.

    Args:
        folder: a model folder or an exported one.
        repo: ORG/NAME.
    Returns:
        The address of the commit.
    Raises:
        CheckpointError: the repository's name is wrong, or the hub refuses; the folder stays as it is.
    """
    check_repo(repo)
    again = f"{folder} stays as it is; send it again with mclip-kit push {folder} {repo}"
    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        done = api.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=DAMAGED_CARD)
    except LocalTokenNotFoundError:
        raise CheckpointError(f"{repo}: you are not logged in; run hf auth login first; {again}") from None
    except Exception as error:
        raise CheckpointError(f"{repo}: the hub did not take it: {first_line(error)}; {again}") from None
    return str(done.commit_url)
