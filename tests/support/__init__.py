"""What the end-to-end tests share: daemons, bare calls, raw bytes, and reading the books."""
