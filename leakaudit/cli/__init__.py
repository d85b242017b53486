"""The command line: one file per command."""


def main() -> None:
    """Run the command line."""
    from leakaudit.cli.entry import main as run  # late, so that asking for a part of it loads no other

    run()
