"""One-vs-rest image classification on Ray: a search per label, all at once, and one TorchScript model at the end."""

__version__ = "0.1.0"
