"""Faults: whatever is killed, whenever: nothing is left, nothing is lost, every record is final and true."""

import pytest

pytest.register_assert_rewrite("forge_orchestration_tests.faults.judgement", "forge_orchestration_tests.faults.rounds")
