"""One thread for all tests, no network but this machine's own, and none of the user's caches.

On small tensors two processes' threads would only wait in turn.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface-hub is imported, which reads it once

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def empty_caches(tmp_path_factory):
    """What a new user has, so that no test passes only where a data set has been fetched."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FEWSTEP_CACHE", "HF_HOME", "TORCH_HOME"):
            patch.setenv(name, str(folder / name))
        yield
