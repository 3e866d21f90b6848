"""Low-rank compression of convolutional networks, in PyTorch."""
