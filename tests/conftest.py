"""One thread per test process: small tensors, and pytest-xdist fills the cores."""

import torch

torch.set_num_threads(1)
