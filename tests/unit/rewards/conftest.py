"""The way back from what was read to what can be written."""

from collections.abc import Callable

import pytest

from rewards.grammar.read import ParsedResponse
from rewards.grammar.write import Response


@pytest.fixture(scope="session")
def response_of() -> Callable[[ParsedResponse], Response]:
    """Makes the `Response` that a well-formed text holds; it checks itself."""

    def make(parsed: ParsedResponse) -> Response:
        assert parsed.is_well_formed, parsed.problems
        assert parsed.observation is not None
        assert parsed.definition is not None
        assert parsed.check is not None
        assert parsed.total is not None
        assert parsed.count is not None
        return Response(
            parsed.observation,
            parsed.definition,
            parsed.cycles,
            parsed.check,
            parsed.total,
            parsed.count,
        )

    return make
