"""The command ``disttrain``, which is also ``python -m disttrain``."""

from disttrain.launcher.interrupt import ends_at_once


def main() -> None:
    """Run the command that ``sys.argv`` names."""
    with ends_at_once():
        from disttrain.cli import main as command
    command()


if __name__ == "__main__":
    main()
