raise RuntimeError("not to be run")
