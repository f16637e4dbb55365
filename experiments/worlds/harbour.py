"""E6 on the second world, a harbour town of old (harbour.toml): the guard knows no word of the first."""

from dataclasses import replace
from pathlib import Path

from experiments import guarded
from experiments.playground import in_lab

WORLD = Path(__file__).with_name("harbour.toml")

EXPERIMENT = replace(
    guarded.EXPERIMENT,
    name="E6-harbour",
    title="the guard on a second world",
    setting=f"A world of other words, families and people (experiments/worlds/harbour.toml). {guarded.EXPERIMENT.setting}",
    measure=in_lab(guarded.measure_in, WORLD),
    seeds=range(3),
)
