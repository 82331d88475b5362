"""Speed of the kit beside the bare net, the paper's released code and torch-cam: `python -m benchmarks`, or `make bench`."""
