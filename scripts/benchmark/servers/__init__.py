"""add_sub in other people's servers: each file is a program of its own, run by the Python of its contender's environment."""
