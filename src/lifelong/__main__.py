"""`python -m lifelong`, for where the command itself is not on the path."""

from lifelong.cli import entry

if __name__ == "__main__":
    entry()
