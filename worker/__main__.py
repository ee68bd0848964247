"""The `worker` command, and `python -m worker`."""

from models.entry_point import run_command


def main() -> None:
    """Runs the command."""
    run_command("worker.cli")


if __name__ == "__main__":
    main()
