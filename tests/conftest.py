"""What every test shares: one torch thread, since two on small tensors are slower than one on small machines."""

import torch

torch.set_num_threads(1)
