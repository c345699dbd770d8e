"""What every test shares: one torch thread, since two on small tensors are slower than one on small machines."""

import os

import torch

torch.set_num_threads(1)

os.environ["BOLTZMIX_COMPILE"] = "0"  # tests of compiled code ask for it
