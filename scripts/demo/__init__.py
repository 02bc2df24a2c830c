"""The parts of the quickstart: a server of its own, things to ask it, and ways to ask."""
