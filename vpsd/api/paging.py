"""`page` and `page_size` as query parameters."""

from typing import Annotated

from litestar.params import Parameter

from vpsd.core.pages import LARGEST_SIZE

Number = Annotated[int, Parameter(ge=1, description="Which page, from 1")]
Size = Annotated[int, Parameter(ge=1, le=LARGEST_SIZE, description="How many to a page")]
