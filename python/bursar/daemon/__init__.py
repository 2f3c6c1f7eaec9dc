"""The sidecar's control plane: its configuration, and the process around the Rust server."""
