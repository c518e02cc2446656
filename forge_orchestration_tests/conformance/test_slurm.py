"""The conformance suite on `slurm`: a controller, accounting and three nodes that the tests start themselves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from forge_orchestration.testing.conformance import *  # noqa: F403
from forge_orchestration_tests import conftest
from forge_orchestration_tests.conftest import copy_runtime
from forge_orchestration_tests.slurm_cluster import running_cluster

pytestmark = pytest.mark.together


@pytest.fixture(scope="module")
def executor_name() -> str:
    return "slurm"


@pytest.fixture(scope="module")
def deployment(forge_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("conformance slurm") / "home ü"
    home.mkdir(mode=0o700)
    conftest._homes.append(home)
    copy_runtime(forge_home, home)
    settings = 'verify_max_age_s = 0\n[defaults]\nmemory = "512MiB"\ncpus = 1\n[slurm]\npoll_s = 0.5\nrecord_s = 3\ncommands_per_minute = 600\n'
    (home / "settings.toml").write_text(settings)
    with running_cluster():
        yield home
