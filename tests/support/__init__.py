"""What the end-to-end tests share: daemons, bare calls, raw bytes, GPUs, and reading the books."""
