"""``python -m disttrain``: the same as the command ``disttrain``."""

from disttrain.cli import main

if __name__ == "__main__":
    main()
