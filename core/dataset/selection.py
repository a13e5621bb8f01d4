"""The pictures that a person asks for: by an expression, in an order, so many."""

from ..counting import counted
from ..errors import AtelierError
from .view import View


def select(view: View, expression: str, order: str, most: int) -> View:
    """The pictures that an expression selects, in an order, so many at most; rejected ones come along uncounted.

    Raises AtelierError if it selects none.
    """
    found = view.filter(expression)
    found = found.sort(order) if order else found
    if most:
        rejected = set(found.matching("rejected"))
        counting = {own for own in [own for own in found.ids if own not in rejected][:most]}
        found = found.only(own for own in found.ids if own in rejected or own in counting)
    if not found.ids:
        blind = "face" in expression and not view.matching("boxes >= 0")
        hint = "Put Find Faces before it, or loosen it." if blind else "Loosen it."
        raise AtelierError(f"The filter {expression!r} selects none of {counted(len(view), 'picture')}. {hint}")
    return found
