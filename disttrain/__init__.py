"""Train neural networks on many GPUs with NumPy and CuPy arrays, NCCL and MPI."""
