"""What hls4ml loads while it is imported itself. `host.hls4ml_plugin` is for users."""
