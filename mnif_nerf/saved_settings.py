"""Settings that `config.yml` files hold as Python objects: keys may be added, and every older file still loads."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from mnif_nerf.errors import MNIFError


class SavedSettings:
    """Base of a settings dataclass that YAML restores by its attributes instead of its constructor.

    Missing ones get their default, so that files written before a setting existed load. Unknown ones are refused:
    another version wrote them, and to drop them would change the run in silence.
    """

    retired: ClassVar[frozenset[str]] = frozenset({"_target"})
    """Attributes of older files that mean nothing any more."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        fields = {field.name: field for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        unknown = sorted(set(state) - set(fields) - self.retired)
        if unknown:
            raise MNIFError(
                f"the configuration has settings that this version does not know ({', '.join(unknown)} of "
                f"{type(self).__name__}); use the version of mnif_nerf that wrote it."
            )
        for name, field in fields.items():
            if name in state:
                value = state[name]
            elif field.default_factory is not dataclasses.MISSING:
                value = field.default_factory()
            else:
                value = field.default
            self.__dict__[name] = value
