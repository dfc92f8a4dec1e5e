"""What runs inside the job: the only rooms that import torch."""
