"""`settings.toml`: every mistake in it is one sentence with the file's name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forge_orchestration.errors import SpecError
from forge_orchestration.model.capacity import Capacity
from forge_orchestration.model.limits import Limits
from forge_orchestration.model.sections import HealthSettings
from forge_orchestration.settings import forge_home, load_settings, make_home


def write(home: Path, text: str) -> Path:
    (home / "settings.toml").write_text(text)
    return home


def test_without_a_file_everything_has_a_default(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    assert settings.home == tmp_path
    assert settings.defaults == Limits()
    host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0.79 * host_bytes < settings.capacity.memory_bytes <= 0.8 * host_bytes, "the host keeps a fifth"
    assert 0 < settings.capacity.pids <= int(Path("/proc/sys/kernel/pid_max").read_text()) / 2
    assert (settings.capacity.scratch_bytes, settings.capacity.cpus, settings.capacity.executions) == (None, None, None)
    assert settings.maximum.memory_bytes == settings.capacity.memory_bytes, "one may have what all may have together"
    assert settings.supervision.on_controller_loss == "kill"
    assert Path("/") not in settings.allowed_input_roots and Path("/etc") not in settings.allowed_input_roots


def test_everything_can_be_set(tmp_path: Path) -> None:
    settings = load_settings(
        write(
            tmp_path,
            """
            allowed_input_roots = ["/a", "~/b"]
            analysis_folders = ["/c"]
            runtime_folders = ["/d/../e"]
            verify_max_age_s = 5
            [defaults]
            memory = "1GiB"
            [maximum]
            memory = "4GiB"
            pids = 50
            [capacity]
            memory = "8GiB"
            pids = 500
            scratch = "100GiB"
            cpus = 1.5
            executions = 7
            [identity]
            first_uid = 200000
            count = 7
            [cgroup]
            parent = "x/y"
            [messages]
            max_count = 3
            [outputs]
            max_files = 4
            [supervision]
            on_controller_loss = "continue"
            [protected_databases]
            lab = "sqlite:////srv/lab.db"
            [guard]
            tags = ["clinical"]
            databases = ["lab"]
            paths = ["/srv/ref", "~/x"]
            tier = "full"
            on_unreadable = "note"
            [host_checks]
            free_disk_bytes = "5GiB"
            load_per_cpu = 1.5
            [neighbours]
            cpu_weight = 50
            write_bytes_per_s = "20MiB"
            [metrics]
            max_label_values = 9
            [health]
            quick_every_s = 60
            full_at = "30 2 * * 1-5"
            time_zone = "Europe/Berlin"
            repeat_s = 7200
            webhook_url = "env:HOOK"
            webhook_timeout_s = 2
            repair = "auto"
            """,
        )
    )
    assert settings.allowed_input_roots == (Path("/a"), Path.home() / "b")
    assert (settings.neighbours.cpu_weight, settings.neighbours.write_bytes_per_s) == (50, 20 * 2**20)
    assert (settings.analysis_folders, settings.runtime_folders) == ((Path("/c"),), (Path("/e"),))
    assert (settings.defaults.memory_bytes, settings.defaults.pids) == (2**30, 50), "never above the maximum"
    assert (settings.maximum.memory_bytes, settings.maximum.pids) == (4 * 2**30, 50)
    assert settings.capacity == Capacity(memory_bytes=2**33, pids=500, scratch_bytes=100 * 2**30, cpus=1.5, executions=7)
    assert (settings.maximum.cpus, settings.maximum.scratch_bytes) == (1.5, 100 * 2**30), "nobody may ask for more than there is"
    assert (settings.identity.first_uid, settings.identity.count) == (200000, 7)
    assert (settings.cgroup.parent, settings.messages.max_count, settings.outputs.max_files) == ("x/y", 3, 4)
    assert settings.metrics.max_label_values == 9
    guard = settings.guard
    assert (guard.tags, guard.databases, guard.paths) == (("clinical",), ("lab",), (Path("/srv/ref"), Path.home() / "x"))
    assert (guard.tier, guard.on_unreadable) == ("full", "note")
    assert (settings.host_checks.free_disk_bytes, settings.host_checks.load_per_cpu) == (5 * 2**30, 1.5)
    assert settings.supervision.on_controller_loss == "continue" and settings.verify_max_age_s == 5
    assert settings.health == HealthSettings(
        quick_every_s=60, full_at="30 2 * * 1-5", time_zone="Europe/Berlin", repeat_s=7200, webhook_url="env:HOOK",
        webhook_timeout_s=2, repair="auto",
    )  # fmt: skip


def test_a_default_that_nobody_wrote_can_always_start(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "[capacity]\nmemory = '1GiB'\npids = 50\n[maximum]\nmemory = '4GiB'\npids = 90"))
    assert (settings.defaults.memory_bytes, settings.defaults.pids) == (2**30, 50)
    assert (settings.maximum.memory_bytes, settings.maximum.pids) == (4 * 2**30, 90)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("memory = ", "cannot be read"), ("= 5", "cannot be read"), ("a = 1\na = 2", "cannot be read"), ("[defaults", "cannot be read"),
        ("colour = 5", "colour"), ("home = '/x'", "home"), ("[network]", "network"),
        ("defaults = 5", "defaults"), ("maximum = []", "maximum"), ("[defaults]\nmemory = 'lots'", "memory"),
        ("[defaults]\ncpu = 1", "cpu"), ("[maximum]\npids = -1", "pids"), ("[maximum]\nwall_time = true", "wall_time"),
        ("capacity = 5", "capacity"), ("[capacity]\nwall_time = 5", "wall_time"), ("[capacity]\nmemory = 'lots'", "memory"),
        ("[capacity]\nexecutions = 0", "executions"), ("[capacity]\nexecutions = 1.5", "executions"), ("[capacity]\npids = 0", "pids"),
        ("allowed_input_roots = '/data'", "allowed_input_roots"), ("allowed_input_roots = [5]", "allowed_input_roots"),
        ("analysis_folders = {}", "analysis_folders"), ("verify_max_age_s = 'long'", "verify_max_age_s"),
        ("[identity]\nfirst = 5", "first"), ("[identity]\ncount = 'x'", "count"), ("identity = 5", "identity"),
        ("[cgroup]\nparent = 5", "parent"), ("[messages]\nmax_count = 1.5", "max_count"), ("[outputs]\nmax_files = true", "max_files"),
        ("[supervision]\non_controller_loss = 'ignore'", "on_controller_loss"), ("[supervision]\npoll_s = 'x'", "poll_s"),
        ("[neighbours]\ncpu_share = 5", "cpu_share"), ("[neighbours]\nwrite_bytes_per_s = 'fast'", "write_bytes_per_s"),
        ("[neighbours]\noom_score_adj = 'x'", "oom_score_adj"), ("neighbours = 5", "neighbours"),
        ("[metrics]\nport = 5", "port"), ("[metrics]\nmax_label_values = 'x'", "max_label_values"),
        ("guard = 5", "guard"), ("[guard]\nanalysis = []", "analysis"), ("[guard]\ntier = 'deep'", "deep"),
        ("[guard]\nanalyses = ['*']", "nothing to look at"), ("[guard]\npaths = ['/srv']", "nothing is guarded without"),
        ("[guard]\nanalyses = ['a']\npaths = ['srv']", "must be absolute"), ('[guard]\nanalyses = ["a"]\npaths = ["/a\\u0000b"]', "must be absolute"),
        ("[guard]\nanalyses = ['a']\npaths = [5]", "paths"), ("[guard]\nanalyses = ['a']\npaths = ['/']", "changes with each execution"),
        ("[guard]\nanalyses = ['a']\ndatabases = ['no']", "'no', which is not under"), ("[guard]\non_unreadable = 'go'", "on_unreadable"),
        ("[host_checks]\nload = 5", "load"), ("[host_checks]\nfree_disk_bytes = 'much'", "free_disk_bytes"), ("host_checks = 5", "host_checks"),
        ("[health]\nquick_every = 5", "quick_every"), ("[health]\nquick_every_s = 4", "quick_every_s"), ("[health]\nfull_at = '0 25 * * *'", "hour"),
        ("[health]\nfull_at = 'daily'", "five fields"), ("[health]\ntime_zone = 'Berlin'", "Berlin"), ("[health]\ntime_zone = '../x'", "time zone"),
        ("[health]\nrepeat_s = -1", "repeat_s"), ("[health]\nwebhook_timeout_s = 21", "webhook_timeout_s"), ("[health]\nrepair = 'yes'", "repair"),
    ],
    ids=lambda value: value.replace("\n", " ")[:30],
)  # fmt: skip
def test_a_mistake_is_one_sentence_that_names_file_and_key(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_settings(write(tmp_path, text))
    assert word in str(caught.value) and str(tmp_path / "settings.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["[cgroup]\nparent = '../escape'", "[cgroup]\nparent = '/absolute'", "[identity]\ncount = 0", "[identity]\ncount = -5",
     "[identity]\nfirst_uid = 0", "[identity]\nfirst_uid = -1", "[messages]\nmax_count = -1", "[outputs]\nmax_depth = -1",
     "[neighbours]\ncpu_weight = 0", "[neighbours]\noom_score_adj = -1", "[neighbours]\ncpu_slice_ms = 101",
      "[metrics]\nmax_label_values = 0",
     "[neighbours]\nwrite_bytes_per_s = 0", "[neighbours]\nwrites_per_s = 0", "[supervision]\npoll_s = 0", "[supervision]\npoll_s = -1", "[supervision]\npoll_s = nan",
     "[host_checks]\nload_per_cpu = 0", "[host_checks]\nmemory_pressure_percent = 101", "[host_checks]\nclock_jump_s = nan"],
    ids=lambda value: value.replace("\n", " ")[:40],
)  # fmt: skip
def test_values_of_the_right_type_that_would_break_a_protection_are_refused(tmp_path: Path, text: str) -> None:
    """A range of uids that includes root, a cgroup outside of the hierarchy, a watch that never or always looks."""
    with pytest.raises(SpecError, match=r"settings\.toml"):
        load_settings(write(tmp_path, text))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(SpecError, match="cannot be read"):
        load_settings(tmp_path)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").mkdir()
    with pytest.raises(SpecError, match="cannot be read"):
        load_settings(tmp_path)


def test_an_edit_is_seen_by_the_same_process(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, "verify_max_age_s = 5")).verify_max_age_s == 5
    assert load_settings(write(tmp_path, "verify_max_age_s = 17")).verify_max_age_s == 17
    (tmp_path / "settings.toml").unlink()
    assert load_settings(tmp_path).verify_max_age_s == 60


def test_where_forge_lives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FORGE_HOME", "~/x/../y")
    assert forge_home() == tmp_path / "y"
    monkeypatch.setenv("FORGE_HOME", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert forge_home() == tmp_path / "data" / "forge"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert forge_home() == tmp_path / ".local/share/forge"


def test_its_folders_are_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    settings = load_settings(tmp_path / "new" / "home")
    before = os.umask(0)
    try:
        make_home(settings)
    finally:
        os.umask(before)
    for folder in (settings.home, settings.executions_dir, settings.runtimes_dir, settings.scratch_dir):
        assert folder.stat().st_mode & 0o777 == 0o700
    make_home(settings)


def test_a_file_in_its_place_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpecError, match="FORGE_HOME"):
        make_home(load_settings(tmp_path / "file"))
    with pytest.raises(SpecError, match="FORGE_HOME"):
        make_home(load_settings(tmp_path / "file" / "beneath"))


@pytest.mark.parametrize("text", ['runtime = "x"', 'group = "x"', 'runtime = "x"\ntag = "t"\ncolour = "red"'])
def test_a_rule_that_picks_nothing_or_holds_an_unknown_key(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match=r"runtime_rules"):
        load_settings(write(tmp_path, f"[[runtime_rules]]\n{text}"))


@pytest.mark.parametrize(
    "text", ['executor = "x"', 'group = "x"', 'executor = "x"\nmemory_over = "much"', 'executor = "x"\ntag = "t"\ncolour = "red"']
)
def test_a_rule_for_executors_that_picks_nothing_or_is_wrong(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match=r"executor_rules|memory_over"):
        load_settings(write(tmp_path, f"[[executor_rules]]\n{text}"))


def test_slurm(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, '[slurm]\npartition = "long"\nspare_bytes = "1GiB"\nscratch_dir = "/local/forge"\n'))
    assert (settings.slurm.partition, settings.slurm.spare_bytes, settings.slurm.scratch_dir) == (
        "long",
        2**30,
        Path("/local/forge"),
    )
    with pytest.raises(SpecError, match="partition"):
        load_settings(write(tmp_path, '[slurm]\npartition = "a b"\n'))


@pytest.mark.parametrize(
    ("marks", "guarded"),
    [
        ("analyses = ['*']", {"a", "exec"}), ("tags = ['*']", {"a", "exec"}), ("analyses = ['a', 'b']", {"a"}), ("groups = ['g']", {"a"}),
        ("tags = ['x', 't']", {"a"}), ("tags = ['a', 'g']", set()), ("analyses = ['exec']", {"exec"}),
    ],
)  # fmt: skip
def test_which_executions_are_guarded(tmp_path: Path, marks: str, guarded: set[str]) -> None:
    guard = load_settings(write(tmp_path, f"[guard]\n{marks}\npaths = ['/srv']")).guard
    there = {"a": ("g", ("s", "t")), "exec": ("", ())}
    assert {name for name, (group, tags) in there.items() if guard.picks(name, group, tags)} == guarded


def test_a_guarded_path_does_not_change_with_each_execution(tmp_path: Path) -> None:
    for path in (
        tmp_path,
        tmp_path / "executions",
        tmp_path / "executions/x",
        tmp_path / "scratch",
        tmp_path / "store.db",
        tmp_path.parent,
    ):
        with pytest.raises(SpecError, match="changes with each execution"):
            load_settings(write(tmp_path, f"[guard]\nanalyses = ['a']\npaths = ['{path}']"))
    settings = load_settings(write(tmp_path, f"[guard]\nanalyses = ['a']\npaths = ['{tmp_path}/settings.toml']"))
    assert settings.guard.paths == (tmp_path / "settings.toml",)


@pytest.mark.parametrize("url", ["s3cret", "ftp://s3cret", "https:///s3cret", "env:", "env:s3cret!", "https://x y/s3cret"])
def test_a_webhook_that_is_none_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    with pytest.raises(SpecError, match="webhook_url") as caught:
        load_settings(write(tmp_path, f"[health]\nwebhook_url = '{url}'"))
    assert "s3cret" not in str(caught.value) and "env:NAME" in str(caught.value)


def test_health_has_defaults(tmp_path: Path) -> None:
    health = load_settings(tmp_path).health
    assert (health.quick_every_s, health.full_at, health.repair, health.webhook()) == (300, "0 3 * * *", "manual", "")
    assert load_settings(write(tmp_path, "[health]\nfull_at = ''")).health.full_at == "", "never"
