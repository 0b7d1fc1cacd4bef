"""The registry of families, their presets, and the JSON form of a spec."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.machinery
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    import jax

    from ppl_models._program import Program

BUILTIN = MappingProxyType(
    {
        "diffusion": "ppl_models.diffusion",
        "hvae": "ppl_models.hvae",
        "in_context": "ppl_models.in_context",
        "mfcvae": "ppl_models.mfcvae",
        "surrogate": "ppl_models.surrogate",
    }
)
"""Family name -> module that registers it when imported.  One line a family."""


@runtime_checkable
class Spec(Protocol):
    """A frozen dataclass that says everything about one model and builds its :class:`Program`.

    ``shape`` is the shape of one datum.  Mark every dataclass inside a spec with
    ``__pydantic_config__ = {"extra": "forbid"}`` so that a misspelt field in a file is an error.
    """

    shape: tuple[int, ...]

    def build(self, key: jax.Array) -> Program: ...


@dataclass(frozen=True)
class Family:
    """A registered family: its spec class, presets by name, and the paper it implements."""

    name: str
    spec: type
    presets: Mapping[str, Any]
    paper: str
    module: str
    build: Callable[[Any, Any], Program] | None = None


_FAMILIES: dict[str, Family] = {}


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(got, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def register(
    name: str, spec: type, *, presets: Mapping[str, Any], paper: str, build: Callable[[Any, Any], Program] | None = None
) -> None:
    """Register a family, of this package or of your own: ``spec`` is its dataclass, ``presets`` named instances.

    ``build``  ``(spec, key) -> Program``; the spec's own ``build`` then says ``return build(self, key)`` with the
    :func:`build` below, so that the file of the spec knows nothing of the program's.  Without it, ``spec.build`` has to
    make the program itself.

    The preset ``"tiny"`` is required: it must build and take a step within seconds, and the contract test
    runs on it.  Registering the same class again is allowed (modules may be reloaded); another class under a
    taken name raises ``ValueError``.
    """
    if not (dataclasses.is_dataclass(spec) and spec.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise ValueError(f"family {name!r}: spec must be a frozen dataclass, got {spec!r}")
    if "tiny" not in presets:
        raise ValueError(f"family {name!r} has no preset 'tiny', got {sorted(presets)}; add one that builds in seconds")
    wrong = [key for key, value in presets.items() if not isinstance(value, spec)]
    if wrong:
        raise ValueError(f"family {name!r}: presets {wrong} are not instances of {spec.__name__}")
    known = _FAMILIES.get(name)
    if known is not None and (known.spec.__module__, known.spec.__qualname__) != (spec.__module__, spec.__qualname__):
        raise ValueError(f"family {name!r} is already registered by {known.module}; choose another name")
    _FAMILIES[name] = Family(name, spec, MappingProxyType(dict(presets)), paper, spec.__module__, build)


def build(spec: Any, key: jax.Array | None = None) -> Program:
    """Build the program of a spec with the function that its family registered; ``key`` draws the starting weights.

    Without a key, ``jax.random.key(0)``.  Raises ``ValueError`` for a spec of no registered family, or of one that was
    registered without ``build=``.
    """
    import jax

    kind = type(spec)
    for family in _FAMILIES.values():
        if (family.spec.__module__, family.spec.__qualname__) == (kind.__module__, kind.__qualname__):
            if family.build is None:
                break
            return family.build(spec, jax.random.key(0) if key is None else key)
    raise ValueError(
        f"no function is registered that builds a {kind.__name__}; "
        f"say register(NAME, {kind.__name__}, build=FUNCTION, ...)"
    )


def families() -> Mapping[str, Family]:
    """All registered families by name; imports the built-in ones."""
    for module in BUILTIN.values():
        importlib.import_module(module)
    return MappingProxyType(_FAMILIES)


def resolve(name: str) -> Any:
    """Return the spec named ``"FAMILY"`` or ``"FAMILY:PRESET"`` (the preset defaults to ``"tiny"``).

    Raises ``ValueError`` with the known names and the closest one for an unknown family or preset.
    """
    family_name, _, preset = name.partition(":")
    known = families()
    if family_name not in known:
        raise ValueError(
            f"unknown family {family_name!r}{did_you_mean(family_name, known)}; known: {', '.join(sorted(known))}"
        )
    presets = known[family_name].presets
    preset = preset or "tiny"
    if preset not in presets:
        raise ValueError(
            f"unknown preset {preset!r} of family {family_name!r}{did_you_mean(preset, presets)}; "
            f"known: {', '.join(presets)}"
        )
    return presets[preset]


def _family_of(spec: Any) -> Family:
    for family in families().values():
        if type(spec) is family.spec:
            return family
    raise ValueError(
        f"{type(spec).__name__} is not the spec of a registered family; call ppl_models.program.register(...) once"
    )


def spec_to_json(spec: Any) -> str:
    """Return the JSON text of a spec: ``{"family": ..., "module": ..., "spec": {...}}``."""
    family = _family_of(spec)
    body = TypeAdapter(family.spec).dump_python(spec, mode="json")
    return json.dumps({"family": family.name, "module": family.module, "spec": body}, indent=2) + "\n"


def spec_from_json(text: str | Mapping[str, Any]) -> Any:
    """Return the spec that a JSON text (or an already parsed mapping, say from TOML) describes.

    ``spec`` may name a subset of the fields; the others keep their defaults, or those of ``"preset"`` when the
    mapping has that key.  A family that is not registered is looked for in its ``"module"``, which is imported only
    where its source registers a family of that name: a file of data starts nothing else.  Raises ``ValueError`` naming
    the field and what was expected.
    """
    if isinstance(text, str):
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"a spec must be JSON, got text that stops being JSON at {error}") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets within brackets
            raise ValueError(f"a spec must be JSON, got text that cannot be read: {error}") from error
    else:
        data = text
    if not isinstance(data, Mapping) or not isinstance(data.get("family"), str):
        raise ValueError('a spec is an object with "family" and "spec", for example {"family": "mfcvae", "spec": {}}')
    unknown = set(data) - {"family", "module", "preset", "spec"}
    if unknown:
        first = sorted(unknown)[0]
        raise ValueError(
            f"unknown key {first!r} in a spec{did_you_mean(first, ('family', 'preset', 'spec'))}; "
            'model fields go inside "spec"'
        )
    name, preset, body = data["family"], data.get("preset", "tiny"), data.get("spec", {})
    if not isinstance(preset, str) or not isinstance(body, Mapping):
        raise ValueError(
            f'"preset" of a spec is a name and "spec" an object, got {preset!r:.60} and {body!r:.60}; '
            f'for example {{"family": {name!r}, "preset": "tiny", "spec": {{}}}}'
        )
    if name not in families() and isinstance(data.get("module"), str):
        _import_family(name, data["module"])
    base = resolve(f"{name}:{preset}")
    adapter = TypeAdapter(type(base))
    if "preset" in data:
        body = {**adapter.dump_python(base, mode="json"), **body}
    try:
        text = json.dumps(dict(body))
    except (TypeError, ValueError, RecursionError) as error:  # a date of TOML, say
        raise ValueError(f"a spec holds numbers, texts, lists and objects: {error}") from error
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(_readable(name, type(base), error)) from error


def _import_family(name: str, module: str) -> None:
    """Import the module of a family that is not registered, where its source registers it."""
    context = f"the spec names family {name!r} of module {module!r}"
    try:
        source = _source(module)
        # Not any module that a file of data may name: to import some is to run a program.
        if not (re.search(r"\bregister\s*\(", source) and re.search(rf"['\"]{re.escape(name)}['\"]", source)):
            raise ValueError(f"{context}, whose source does not register a family of that name")
        importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{context}, which cannot be imported here: {error}; import it first") from error


def _source(module: str) -> str:
    """The source of a module, found without running anything of it or of its packages."""
    path: Sequence[str] | None = None
    loader: Any = None
    for part in module.split("."):
        found = importlib.machinery.PathFinder.find_spec(part, path) if part else None
        if found is None:
            raise ImportError(f"No module named {module!r}")
        path, loader = found.submodule_search_locations or (), found.loader
    if not isinstance(loader, importlib.machinery.SourceFileLoader):
        raise ImportError(f"{module!r} has no source")
    return importlib.util.decode_source(loader.get_data(loader.path))


def _readable(name: str, spec: type, error: ValidationError) -> str:
    lines = []
    # Misspelt fields first: they explain the missing ones.
    for item in sorted(error.errors(), key=lambda item: item["type"] != "unexpected_keyword_argument"):
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "unexpected_keyword_argument":
            fields = [f.name for f in dataclasses.fields(spec)]
            lines.append(f"unknown field {where!r}{did_you_mean(str(item['loc'][-1]), fields)}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            got = "" if item["type"].startswith("missing") or not where else f" (got {item['input']!r})"
            lines.append(f"{where}: {message}{got}" if where else message)
    return f"not a valid {name!r} spec: " + "; ".join(lines)
