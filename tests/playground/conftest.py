from pathlib import Path

import pytest

from bridle.playground.gold import Gold
from bridle.playground.world import World

SMALL_WORLD = Path(__file__).with_name("small_world.toml")
HARBOUR = Path(__file__).parents[2] / "experiments/worlds/harbour.toml"


@pytest.fixture(scope="session")
def world() -> World:
    return World.load()


@pytest.fixture
def gold(world: World) -> Gold:
    return Gold(world)


@pytest.fixture(scope="session")
def small_world() -> World:
    """A second world of other words."""
    return World.load(SMALL_WORLD)


@pytest.fixture(scope="session")
def harbour() -> World:
    """The second world of full size, on which experiments are run again."""
    return World.load(HARBOUR)
