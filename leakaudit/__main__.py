"""`python -m leakaudit`: the command line."""

from leakaudit.cli import main

if __name__ == "__main__":
    main()
