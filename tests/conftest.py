"""One thread for all tests: on small tensors two processes' threads would only wait in turn."""

import torch

torch.set_num_threads(1)
