"""Numbers as the files of a run have them. These files may be anyone's, or damaged."""

from typing import Annotated

from pydantic import Field

NonNegativeInt = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
PositiveInt = Annotated[int, Field(gt=0, lt=2**63, strict=True)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False, strict=True)]
PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]
