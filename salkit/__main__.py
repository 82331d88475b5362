"""`python -m salkit` and `salkit`: the command line."""

from salkit.commands.app import app

if __name__ == "__main__":
    app()
