"""Everything that takes part in an execution, killed at random moments: a sample always, at least 200 kills in `make test-all`.

The seed of each round is printed, and `FORGE_FAULT_SEED=123` plays that one round again.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from forge_orchestration_tests.conftest import Forge, close_own_spawners
from forge_orchestration_tests.faults.judgement import judge
from forge_orchestration_tests.faults.rounds import Round

SAMPLE = 6
KILLS = 200


@pytest.fixture(autouse=True)
def no_spawner_of_an_earlier_test() -> None:
    """One that this process keeps for its own executions would pass for one of a round's."""
    close_own_spawners()


def play(home: Path, forge: Forge, seed: int) -> int:
    """One round; returns how many kills hit somebody."""
    drawn = Round(home, seed)
    print(drawn, flush=True)
    drawn.play()
    print("  hit:", ", ".join(map(str, drawn.hits)), flush=True)
    drawn.reconcile(forge)
    judge(drawn, forge)
    return len(drawn.hits)


def fresh_seed() -> int:
    return random.SystemRandom().randrange(1 << 32)


@pytest.mark.skipif("FORGE_FAULT_SEED" not in os.environ, reason="FORGE_FAULT_SEED is not set")
def test_the_round_of_a_seed(forge_home: Path, forge: Forge) -> None:
    play(forge_home, forge, int(os.environ["FORGE_FAULT_SEED"]))


def test_a_sample(forge_home: Path, forge: Forge) -> None:
    assert sum(play(forge_home, forge, fresh_seed()) for _ in range(SAMPLE)) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills(forge_home: Path, forge: Forge) -> None:
    hits = 0
    while hits < KILLS:
        hits += play(forge_home, forge, fresh_seed())
    print(f"{hits} kills")
