"""Settings of what people and programs do beside training: labelling."""

from pydantic import Field

from bridle.recipe.base import LONGEST, Section


class LabelSection(Section):
    """How answers are compared by people, real or simulated, and what that costs."""

    overlap: int = Field(default=3, ge=1, le=100)
    """people who judge the same item, of those that several judge: their agreement tells how reliable each is"""
    overlap_share: float = Field(default=0.2, ge=0, le=1)
    """share of the items that several people judge; the others are judged once"""
    gold_share: float = Field(default=0.05, ge=0, le=1)
    """playground: share of the items whose right answer is known, by which people are checked"""
    piece_price: float = Field(default=0, ge=0, le=LONGEST)
    """what one judgement costs, in any currency"""
    hour_price: float = Field(default=0, ge=0, le=LONGEST)
    """what an hour of a person's time costs, where they are not paid by the piece"""
