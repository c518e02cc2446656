"""The executor `docker` beyond the contract: images, an engine that goes away, and what a hostile image brings."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from forge_orchestration.model.record import record_from_json
from forge_orchestration_tests import conftest
from forge_orchestration_tests.conftest import Forge, copy_runtime, wait_until
from forge_orchestration_tests.container_engine import Engine, import_busybox, running_engine
from forge_orchestration_tests.faults import victims


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running_engine(live_restore=True) as started:
        yield started


@pytest.fixture(scope="module")
def forge(forge_home: Path, tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Forge:
    return home_of(forge_home, tmp_path_factory.mktemp("docker"), engine)


def home_of(forge_home: Path, folder: Path, engine: Engine, more: str = "") -> Forge:
    home = folder / "home ü"
    home.mkdir(mode=0o700)
    conftest._homes.append(home)
    copy_runtime(forge_home, home)
    (home / "settings.toml").write_text(f"docker_host = {json.dumps(engine.url)}\nverify_max_age_s = 0\n{more}")
    return Forge(home)


def containers(engine: Engine) -> list[str]:
    with contextlib.closing(docker.DockerClient(base_url=engine.url)) as client:
        return [one.name for one in client.containers.list(all=True)]


def add_image(forge: Forge, name: str, image: str) -> None:
    for words in (("add", name, "--image", image), ("build", name)):
        done = forge("runtimes", *words)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def hostile_image(engine: Engine) -> str:
    """It brings variables for the loader, a search path, a program to start first, and a volume."""
    return import_busybox(
        engine.url, "ENV LD_PRELOAD=/evil.so", "ENV PATH=/opt/own:/bin", "ENV FORGE_OUTPUTS=/tmp", 'ENTRYPOINT ["/bin/false"]',
        "VOLUME /data", "VOLUME /forge/outputs", "USER 0",
    )  # fmt: skip


class TestImages:
    def test_it_runs_and_its_outputs_are_collected(self, forge: Forge, engine: Engine) -> None:
        add_image(forge, "boxed", import_busybox(engine.url))
        record = forge.record(
            "exec",
            "--executor",
            "docker",
            "--runtime",
            "boxed",
            "--",
            "sh",
            "-c",
            "id > $FORGE_OUTPUTS/id; ls /bin > $FORGE_OUTPUTS/bin",
        )
        assert record.succeeded, record.message
        assert "uid=18790" in Path(record.folder, "outputs/id").read_text()
        assert Path(record.folder, "outputs/bin").read_text().split()[0] == "busybox"
        assert record.runtime is not None and record.runtime.kind == "image"
        assert containers(engine) == []

    def test_what_an_image_brings_does_not_come_first(self, forge: Forge, hostile_image: str) -> None:
        add_image(forge, "hostile", hostile_image)
        script = "env; echo x > /data/x && echo wrote; echo kept > $FORGE_OUTPUTS/x; cat /proc/self/status"
        record = forge.record("exec", "--executor", "docker", "--runtime", "hostile", "--", "sh", "-c", script)
        said = Path(record.logs["stdout"].path).read_text()
        assert record.succeeded and "wrote" not in said, said
        assert "FORGE_OUTPUTS=/forge/outputs\n" in said and "PATH=/opt/own:/bin:" in said
        assert "CapEff:\t0000000000000000" in said and "Uid:\t18790" in said
        assert Path(record.folder, "outputs/x").read_text() == "kept\n"

    def test_of_the_host_nothing_decides_its_result(self, forge: Forge) -> None:
        done = forge("exec", "--json", "--executor", "docker", "--runtime", "boxed", "--cache", "use", "--", "true")
        assert "an image's own" in record_from_json(done.stdout).fingerprint_parts["system"]


class TestAnEngineThatGoesAway:
    def test_nothing_is_lost_where_containers_go_on(self, forge: Forge, engine: Engine) -> None:
        script = (
            "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo line $i; sleep 0.5; done; echo x > $FORGE_OUTPUTS/x; printf end; exit 7"
        )
        with forge.started("exec", "--json", "--executor", "docker", "--", "sh", "-c", script) as process:
            wait_until("the container", lambda: containers(engine), 30)
            time.sleep(1)
            engine.stop()
            time.sleep(1)
            engine.start()
            said, complaints = process.communicate(timeout=120)
        record = record_from_json(said)
        assert (record.end_reason, record.exit_code) == ("nonzero_exit", 7), (record.message, complaints)
        lines = "".join(f"line {number}\n" for number in range(1, 13)) + "end"
        assert Path(record.logs["stdout"].path).read_text() == lines
        assert Path(record.folder, "outputs/x").read_text() == "x\n"
        assert containers(engine) == []

    def test_it_is_told_where_it_ends_them(self, forge_home: Path, tmp_path: Path) -> None:
        with running_engine() as strict:
            forge = home_of(forge_home, tmp_path, strict)
            with forge.started("exec", "--json", "--executor", "docker", "--", "sleep", "60") as process:
                wait_until("the container", lambda: containers(strict), 30)
                time.sleep(1)
                strict.stop()
                strict.start()
                said, _ = process.communicate(timeout=120)
            record = record_from_json(said)
            assert record.end_reason == "executor_error" and "live-restore" in record.message, record.message
            assert containers(strict) == []

    def test_one_that_is_not_there(self, forge_home: Path, tmp_path: Path) -> None:
        forge = home_of(forge_home, tmp_path, Engine(tmp_path, live_restore=False))
        done = forge("exec", "--executor", "docker", "--", "true")
        assert done.returncode == 5 and "No container engine answers at" in done.stderr and not forge.executions()
        (facts,) = [one for one in json.loads(forge("executors", "list", "--json").stdout) if one["name"] == "docker"]
        assert not facts["available"] and "No container engine answers" in facts["why"] and facts["hint"]


class TestKilled:
    @pytest.mark.parametrize("kind", ["supervisor", "spawner", "controller"])
    def test_whoever_it_is_no_container_stays(self, forge: Forge, engine: Engine, kind: str) -> None:
        before = forge.executions()
        with forge.started("exec", "--json", "--executor", "docker", "--", "sh", "-c", "sleep 5") as process:
            running = wait_until(
                "the execution",
                lambda: [
                    one
                    for one in forge.executions() - before
                    if (forge.home / "executions" / one / "record.json").exists() and forge.read_record(one).status == "running"
                ],
                60,
            )
            for pid in victims.find(forge.home, kind, process.pid, running[0]):
                victims.kill(pid)
            process.communicate(timeout=120)
        done = forge("gc", "--json")
        assert json.loads(done.stdout)["problems"] == [], done.stdout
        record = wait_until("its end", lambda: (one := forge.read_record(running[0])).status.is_final and one, 60)
        assert record.end_reason == {"supervisor": "executor_error", "spawner": "completed", "controller": "controller_lost"}[kind]
        wait_until("no container", lambda: not containers(engine), 30)

    def test_a_container_that_is_removed_by_somebody(self, forge: Forge, engine: Engine) -> None:
        with forge.started("exec", "--json", "--executor", "docker", "--", "sleep", "60") as process:
            (name,) = wait_until("the container", lambda: containers(engine), 30)
            time.sleep(1)
            with contextlib.closing(docker.DockerClient(base_url=engine.url)) as client:
                client.containers.get(name).remove(force=True)
            said, _ = process.communicate(timeout=120)
        record = record_from_json(said)
        assert record.end_reason == "executor_error", record.message


@pytest.mark.parametrize("number", [9, 15])
def test_who_closes_its_outputs_and_ends_itself_is_not_taken_for_the_engines_doing(forge: Forge, number: int) -> None:
    code = f"import os, time; os.close(1); os.close(2); time.sleep(1); os.kill(os.getpid(), {number})"
    record = forge.record("exec", "--executor", "docker", "--", "python", "-c", code)
    assert (record.end_reason, record.signal) == ("signaled", number), record.message


def test_ten_at_once(forge: Forge, engine: Engine) -> None:
    statuses = []

    def run(number: int) -> None:
        record = forge.record(
            "exec", "--executor", "docker", "--memory", "64MiB", "--", "sh", "-c", f"echo {number} > $FORGE_OUTPUTS/n", timeout=300
        )
        statuses.append((record.end_reason, Path(record.folder, "outputs/n").read_text() == f"{number}\n"))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [("completed", True)] * 10
    assert containers(engine) == []


def test_the_same_analysis_makes_the_same_bytes_there(forge_home: Path, tmp_path: Path, engine: Engine) -> None:
    """Only the executor is another one."""
    analysis = tmp_path / "sums"
    analysis.mkdir()
    (analysis / "sums.py").write_text(
        "import json, os, random\nrandom.seed(int(os.environ['FORGE_SEED']))\n"
        "json.dump([random.random() for _ in range(100)], open(os.environ['FORGE_OUTPUTS'] + '/numbers.json', 'w'))\n"
    )
    (analysis / "analysis.yaml").write_text(
        "command: [python, sums.py]\nruntime: forge-python\nseed: 3\noutputs: {numbers: numbers.json}\ndeterministic: true\n"
    )
    forge = home_of(forge_home, tmp_path, engine)
    local, contained = (forge.record("run", analysis, "--cache", "refresh", "--executor", name) for name in ("local", "docker"))
    assert local.succeeded and contained.succeeded, contained.message
    assert local.outputs == contained.outputs and local.fingerprint == contained.fingerprint
    assert forge("replay", local.execution_id, "--executor", "docker").returncode == 0
    again = forge.record("run", analysis, "--executor", "docker")
    assert again.cache.hit


def test_a_cancel_while_the_engine_works(forge: Forge, engine: Engine) -> None:
    ends = []
    for after_s in (0.05, 0.3, 0.6, 1.0):
        with forge.started("exec", "--json", "--executor", "docker", "--grace", "1s", "--", "sleep", "60") as process:
            time.sleep(after_s)
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=120)
        ends.append(record_from_json(said).end_reason if said else None)
    assert set(ends) <= {"canceled", None} and "canceled" in ends, ends  # none of what was asked to end before it had begun
    assert containers(engine) == []


def test_a_local_execution_keeps_nothing_of_a_container_that_ends_meanwhile(forge: Forge, engine: Engine) -> None:
    """Its supervisor has a copy of the host's mounts."""

    def images() -> set[str]:
        return {
            path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file") if str(forge.home) in path.read_text()
        }

    with forge.started("exec", "--executor", "docker", "--", "sh", "-c", "echo up; sleep 600") as container:
        assert container.stdout is not None and container.stdout.readline() == "up\n"
        its_own = images()
        with forge.started("exec", "--", "sh", "-c", "echo up; sleep 600") as local:
            assert local.stdout is not None and local.stdout.readline() == "up\n"
            container.send_signal(signal.SIGINT)
            container.wait(30)
            wait_until("the end of its file system", lambda: not its_own & images())
            local.send_signal(signal.SIGINT)
            local.wait(30)
