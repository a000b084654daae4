"""One thread for every test: figures that do not depend on the machine's load, and room for parallel runs."""

import torch

torch.set_num_threads(1)
