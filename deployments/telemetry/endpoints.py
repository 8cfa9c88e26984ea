"""Which route a path belongs to, as a label: few values, whatever clients ask for."""

import re
from collections.abc import Iterable
from typing import Final

from deployments.edge.border import DOCUMENTATION_PATHS

UNKNOWN: Final = "unknown"
DOCUMENTATION: Final = "/docs"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Endpoints:
    """Finds the template of a path.

    Args:
        templates: ``/api/v1/runs/{run_id}`` …, as OpenAPI writes them.
    """

    def __init__(self, templates: Iterable[str]) -> None:
        self._templates = sorted(templates, key=lambda template: template.count("{"))  # fixed ones first
        self._pattern = re.compile("|".join(f"({_regex(t)})" for t in self._templates) or "(?!)")

    def of(self, path: str) -> str:
        """The template; ``/docs`` for all documentation, ``unknown`` where there is no route."""
        found = self._pattern.fullmatch(path) or self._pattern.fullmatch(path.rstrip("/"))
        if found is not None and found.lastindex is not None:
            return self._templates[found.lastindex - 1]
        return DOCUMENTATION if path.startswith(DOCUMENTATION_PATHS) else UNKNOWN


def _regex(template: str) -> str:
    return re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template))


def known_method(method: str) -> str:
    return method if method in _METHODS else "OTHER"
