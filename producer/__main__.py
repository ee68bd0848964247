"""The `producer` command, and `python -m producer`."""

from models.entry_point import run_command


def main() -> None:
    """Runs the command."""
    run_command("producer.cli")


if __name__ == "__main__":
    main()
