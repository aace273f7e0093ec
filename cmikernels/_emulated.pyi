"""The GPU kernels on an emulated GPU, built for tests with CMIKERNELS_EMULATE_CUDA=ON."""

def emulate(
    *,
    seed: int = 0,
    capability: int = 90,
    processors: int = 4,
    largest_cluster: int = 16,
    clusters_of_16: int = 1,
    block_bytes: int = 24576,
    processor_bytes: int = 32768,
    cache_bytes: int = 262144,
) -> None: ...
