"""How fast the kit is, beside the bare net, the paper's released way and torch-cam: `python -m benchmarks`, or `make bench`."""
