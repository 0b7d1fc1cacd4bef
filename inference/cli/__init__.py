"""The command line ``ppl-models``: one file a verb, with its arguments, its help and what it does.

The one room that sees both packages and may name a family.  What a library user could want as well belongs in another
room; here stand words, exit codes and files.
"""

from inference.cli.app import main as main
