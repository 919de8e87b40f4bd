"""Types of tensors by shape, for annotations: Float[Tensor, "T D"].

Annotations are text at run time. The tests evaluate them and check every call of the annotated
modules (`tests/conftest.py`). Where jaxtyping is not installed, as on a machine
that only trains, the names stand for a plain tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ModuleNotFoundError:

        class Float:
            """Stand-in that accepts every tensor."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Int = Float

__all__ = ["Bool", "Float", "Int"]
