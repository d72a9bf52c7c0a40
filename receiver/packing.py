"""Small pickles of what processes exchange for each attempt."""


class Packed:
    """A dataclass that is pickled as its values, in the order of its fields.

    For a dataclass with slots, the pickle of the standard library names every field, and sets each
    by a call; for an order with an attempt that took as long as a no-op attempt itself.
    """

    __slots__ = ()
    __match_args__: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """See object."""
        return type(self), tuple([getattr(self, name) for name in self.__match_args__])
