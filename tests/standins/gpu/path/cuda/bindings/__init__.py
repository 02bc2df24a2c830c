"""As ``cuda.bindings``."""
