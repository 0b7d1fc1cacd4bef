"""Progress for anything over two seconds, under the name by which fitting and checking know it."""

from __future__ import annotations

from inference._progress import Progress as Progress
