"""As NVIDIA's ``cuda`` package."""
