"""Target cuda: kernels for tiled layers and artifacts with machine code."""
