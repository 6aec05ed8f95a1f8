#!/usr/bin/env python3
"""Unit tests of the driver: counting, thresholds, results, wrong use, and targets that can't be started here."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from functools import partial
from pathlib import Path
from unittest import mock

sys.dont_write_bytecode = True
LOADTEST = Path(__file__).resolve().parents[2] / "loadtest"
sys.path.insert(0, str(LOADTEST))

from driver import cli, k6, report, results, scenarios, simulation, source, targets  # noqa: E402


def csv(at: float, ms: float, op: str = "check", outcome: str = "ok", replica: str = "replica-1") -> str:
    return f"authfleet_request_ms,{int(at * 1000)},{ms:.6f},,,,,op={op}&outcome={outcome}&replica={replica},\n"


class Counting(unittest.TestCase):
    def test_requests_by_second_and_replica(self) -> None:
        recording = k6.Recording()
        for n in range(100):
            recording.add(csv(1000.0 + n / 1000, n + 1))
        recording.add(csv(1002.5, 7, outcome="failed", replica="none"))
        rows = recording.series()
        self.assertEqual([row["requests"] for row in rows], [100, 0, 1])
        self.assertEqual((rows[0]["p50"], rows[0]["p99"]), (51, 100))
        self.assertEqual(rows[2]["failed"], 1)
        self.assertEqual(rows[2]["replicas"], {"none": 1})

    def test_503_outside_the_outage_is_a_miss(self) -> None:
        for late, ok in ((1.0, True), (9.0, False)):
            recording = k6.Recording()
            chaos = scenarios.Chaos(lambda _: None, recording)
            chaos.events = [(1000.0, "kill Redis"), (1006.0, "Redis ready")]
            recording.add(csv(1003, 5, outcome="unavailable"))
            recording.add(csv(1006 + late, 5, outcome="unavailable"))
            self.assertEqual([t.ok for t in scenarios.while_gone(chaos, recording)], [True, ok])

    def test_an_outage_without_a_503_proves_nothing(self) -> None:
        chaos = scenarios.Chaos(lambda _: None, k6.Recording())
        chaos.events = [(1000.0, "kill Redis"), (1006.0, "Redis ready")]
        self.assertFalse(all(t.ok for t in scenarios.while_gone(chaos, k6.Recording())))

    def test_a_503_must_have_a_failover_that_explains_it(self) -> None:
        events = [(1000.0, "kill Redis's primary"), (1008.0, "Redis has another primary"), (1012.0, "Redis is whole")]
        events += [(1020.0, "kill PostgreSQL's primary"), (1030.0, "PostgreSQL has another primary")]
        fine = [(1004.0, "check"), (1025.0, "login")]
        for more, ok in (
            ([], [True] * 4),
            ([(1015.0, "check")], [True, True, False, True]),
            ([(1025.0, "check")], [True, True, True, False]),
        ):
            recording = k6.Recording()
            chaos = scenarios.Chaos(lambda _: None, recording)
            chaos.events = events
            for at, op in fine + more:
                recording.add(csv(at, 5, op, "unavailable"))
            self.assertEqual([t.ok for t in scenarios.while_replaced(chaos, recording)], ok, more)


class Judging(unittest.TestCase):
    def outcome(self, *oks: bool, interrupted: bool = False) -> scenarios.Outcome:
        return scenarios.Outcome("smoke", 1, [scenarios.Threshold("t", 0, ok) for ok in oks], interrupted)

    def test_passed_needs_thresholds_that_held(self) -> None:
        self.assertTrue(self.outcome(True, True).passed)
        self.assertFalse(self.outcome(True, False).passed)
        self.assertFalse(self.outcome().passed)
        self.assertFalse(self.outcome(True, interrupted=True).passed)

    def test_k6_that_broke_off_is_a_miss(self) -> None:
        done = k6.Run(107, {}, k6.Recording(), ["error: script"], 1)
        self.assertEqual([t.ok for t in scenarios.from_k6(done)], [False])

    def test_k6_goes_first_if_it_may(self) -> None:
        asked = [
            sys.executable,
            "-c",
            "import os; print(hasattr(os, 'SCHED_RR') and os.sched_getscheduler(0) == os.SCHED_RR)",
        ]
        chrt = shutil.which("chrt")
        may = chrt is not None and subprocess.run([chrt, "--rr", "1", "true"], capture_output=True).returncode == 0
        for ahead, goes_first in ((True, may), (False, False)):
            done = subprocess.run(asked, capture_output=True, text=True, preexec_fn=partial(k6.begin, ahead))
            self.assertEqual((done.returncode, done.stdout), (0, f"{goes_first}\n"), done.stderr)

    def test_the_report_escapes_what_a_fleet_says(self) -> None:
        outcome = self.outcome(False)
        outcome.log = ["<script>alert(1)</script>"]
        facts = {"time": "now", "target": "<b>", "replicas": [], "edge": None, "short": True, "machine": "m"}
        with tempfile.TemporaryDirectory() as directory:
            cli.write(Path(directory), facts, [outcome], {"soak": "not asked"})
            page = (Path(directory) / "report.html").read_text()
            self.assertNotIn("<script>", page)
            self.assertNotIn("http://", page.replace("http://www.w3.org", ""))
            self.assertFalse(json.loads((Path(directory) / "report.json").read_text())["scenarios"][0]["passed"])

    def test_scales_end_above_the_values(self) -> None:
        for value in (0.04, 0.9, 1, 3, 99, 101, 4096):
            self.assertGreaterEqual(report.ceiling(value) * 1.001, value)


class Results(unittest.TestCase):
    """Tests the committed results, and a made-up run and benchmark."""

    def recorded(self) -> tuple[dict, dict, str]:
        facts = {"commit": "c0ffee" + "0" * 34, "clean": True, "time": "2026-01-31T12:00:00Z", "machine": "a machine"}
        latency = {"authfleet_check_ms": {"med": 1.0, "p(95)": 2.0, "p(99)": 3.0}, "http_reqs": {"count": 7}}
        good = scenarios.Outcome("average", 9, [scenarios.Threshold("t", 0, True)], summary=latency)
        bad = scenarios.Outcome("spike", 9, [scenarios.Threshold("nothing failed", 3, False)], summary=latency)
        storm = {"ratio": 1.5, "p99_calm_ms": 2.0, "p99_storm_ms": 3.0}
        flood = scenarios.Outcome("login-storm", 9, good.thresholds, summary=latency, extra=storm)
        proof = scenarios.Outcome("smoke", 9, good.thresholds, summary=latency)
        rows = [{"what": "/livez", "per_second": 5, "ms": {"p50": 1}, "histogram": [(1, 2)]}]
        oha = scenarios.Outcome("throughput", 9, good.thresholds, extra={"oha": rows})
        whole = {**facts, "target": "local", "replicas": [], "edge": None, "short": False}
        with tempfile.TemporaryDirectory() as directory:
            cli.write(Path(directory), whole, [good, bad, flood, proof, oha], {"soak": "not asked"})
            page = (Path(directory) / "report.html").read_text()
            run = results.keep(json.loads((Path(directory) / "report.json").read_text()))
        arm = {"server": 20.0, "redis": 10.0, "per_second": 40000.0}
        bench = {
            **facts,
            "quick": False,
            "redis_version": "8.2.2",
            "ready_ms": 9.0,
            "idle_mib": 12.0,
            "login": {"server_ms": 20.0, "redis_ms": 0.5, "logins": 60},
            "storm": {"idle_mib": 30.0, "peak_mib": 50.0, "after_mib": 14.0},
            "checks": {
                "arms": {"authfleet": arm, "bare axum handler": {**arm, "redis": 20.0}},
                "commands_per_check": {"hmget": 1.001, "pexpire": 1.001},
                "redis_benchmark": {"HGETALL + EXPIRE": 12.5},
            },
            "sizes": [{"sessions": 1000, "bytes_per_session": 770, **arm}],
            "by_listpack_limit": {"64": {"bytes": 1216, "redis": 10.0}},
            "persistent": arm,
        }
        return run, bench, page

    def test_documents_say_what_was_recorded(self) -> None:
        loaded = results.load()
        self.assertEqual(list(results.disagreements(*loaded)) if loaded else [], [])
        self.assertEqual(list(results.stale(loaded)), [])

    def test_a_record_is_of_one_commit(self) -> None:
        run, bench, page = self.recorded()
        self.assertEqual(list(results.disagreements(run, bench, page)), [])
        for broken, said in (
            (({**run, "commit": None}, bench, page), "unknown commit"),
            (({**run, "clean": False}, bench, page), "not committed"),
            ((run, {**bench, "commit": "d" * 40}, page), "bench.json of ddd"),
            ((run, bench, page.replace("c0ffee", "decade")), "does not name"),
            ((run, bench, page.replace("<span class=bad>", "<span class=ok>")), "spike"),
            (({**run, "short": True}, bench, page), "short"),
        ):
            self.assertIn(said, " ".join(results.disagreements(*broken)))

    def test_figures_and_verdicts_reach_the_documents(self) -> None:
        run, bench, _ = self.recorded()
        blocks = results.documents((run, bench, ""))
        for name, said in (
            ("loadtest/README.md", "| `average` | passed | 7 requests, 0 failed, p50 1.0 ms, p99 3.0 ms |"),
            ("loadtest/README.md", "| `spike` | **FAILED**: nothing failed | 7 requests"),
            ("loadtest/README.md", "2.0 ms without, 3.0 ms with the flood: 1.5-fold"),
            ("loadtest/README.md", "| authfleet | 20.0 | 10.0 | 30.0 | 0.75 | 40000 |"),
            ("loadtest/README.md", "commit `c0ffee000000`"),
            ("docs/capacity.md", "| session checks for the CPU of one login | 1 000 |"),
            ("docs/capacity.md", "| 100 000 000 | 1 000 000 |"),
        ):
            self.assertIn(said, blocks[name])

    def test_the_table_of_the_stores_is_what_is_calculated(self) -> None:
        def capacity(*arguments: str) -> list[str]:
            command = [sys.executable, "-B", str(LOADTEST / "capacity"), *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

        document = (LOADTEST.parent / "docs" / "capacity.md").read_text()
        # `make docs` doesn't write this table: after new figures, paste what the command prints.
        self.assertIn("\n".join(capacity("--stores")), document)
        one = ["--stores", "--sessions", "1e6", "--checks", "1e4"]
        for options, column, cell in (
            (["--logins", "40", "--cores", "1", "--replicas", "19"], 4, "PgBouncer"),
            (["--logins", "40", "--cores", "1", "--replicas", "18"], 4, "direct"),
            (["--replicas", "5000"], 9, "10002 (too many)"),
            (["--copies", "1"], 7, "2"),
            (["--shard", "1"], 6, "3"),
            # 3 x 2 cores, 3 members, and 3 x 1.08 GiB.
            (["--core-price", "10", "--gib-price", "0"], 11, "90"),
        ):
            cells = [cell.strip() for cell in capacity(*one, *options)[-1].strip("|").split("|")]
            self.assertEqual(cells[column], cell, options)

    def test_changes_that_are_not_committed_are_said(self) -> None:
        self.assertIn("not committed", source.words({"commit": "c0ffee", "clean": False}))
        self.assertEqual(source.words({"commit": "c0ffee", "clean": True}), "commit c0ffee")


class Simulation(unittest.TestCase):
    """Compares the simulation with what queueing theory calculates."""

    def test_checks_wait_as_theory_says(self) -> None:
        shape = simulation.Shape(replicas=1, server=1e-3, redis=0, balancers=1)
        for load, mean in ((0.5, 2.0), (0.8, 5.0)):
            seen = simulation.checks(shape, load * 1e3, 30_000)
            self.assertAlmostEqual(sum(seen.latencies) / len(seen.latencies) * 1e3 / mean, 1, delta=0.1)
            self.assertAlmostEqual(seen.replica_load, load, delta=0.03)

    def test_logins_are_refused_as_theory_says(self) -> None:
        """M/M/1/K: one in service, and three that wait."""
        load, places = 0.9, 4
        shape = simulation.Shape(1, 0, 0, balancers=1, login=10e-3, room=places - 1)
        seen = simulation.logins(shape, load / shape.login, 30_000)
        refused = seen.refused / (seen.refused + len(seen.latencies))
        self.assertAlmostEqual(refused, (1 - load) * load**places / (1 - load ** (places + 1)), delta=0.01)

    def test_on_one_machine_the_cores_are_the_limit(self) -> None:
        shape = simulation.Shape(replicas=3, server=30e-6, redis=10e-6, variation=0)
        one = simulation.on_one_machine(shape, 1, think=0, client=10e-6, cores=2, count=1000)
        self.assertAlmostEqual(one.quantile(0.5), 45e-6, delta=1e-7)
        many = simulation.on_one_machine(shape, 60, think=0, client=10e-6, cores=2, count=20_000)
        self.assertAlmostEqual(many.per_second / (2 / 50e-6), 1, delta=0.02)
        # 60 clients, of which each waits for all the others.
        self.assertAlmostEqual(many.quantile(0.5) * many.per_second / 60, 1, delta=0.1)

    def test_a_full_redis_holds_up_many_replicas(self) -> None:
        shape = simulation.Shape(replicas=30, server=30e-6, redis=10e-6, shards=3)
        calm, full = (simulation.checks(shape, per_second, 20_000) for per_second in (100_000, 297_000))
        self.assertGreater(full.quantile(0.99), 3 * calm.quantile(0.99))
        self.assertGreater(full.redis_load, 0.9)
        self.assertLess(full.replica_load, 0.4)

    def simulate(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-B", str(LOADTEST / "simulate"), *arguments], capture_output=True, text=True, check=False
        )

    def test_the_table_of_latencies_is_what_is_simulated(self) -> None:
        document = (LOADTEST.parent / "docs" / "capacity.md").read_text()
        # The same seed gives the same figures. After new figures of the benchmark, paste what the command prints.
        for line in self.simulate("--replicas", "3", "--loads", "60").stdout.splitlines():
            self.assertIn(line, document)

    def test_wrong_use_is_refused(self) -> None:
        for wrong in (["--loads", "100"], ["--replicas", "0"], ["--variation", "-1"], ["--bench", "/nowhere"]):
            done = self.simulate(*wrong)
            self.assertEqual((done.returncode, "Traceback" in done.stderr), (2, False), done.stderr)


class Use(unittest.TestCase):
    def main(self, *arguments: str) -> tuple[int, str]:
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                return cli.main("", list(arguments)), said.getvalue()
            except SystemExit as end:
                return int(end.code), said.getvalue()

    def test_list(self) -> None:
        code, said = self.main("list")
        self.assertEqual(code, 0)
        for name in scenarios.SCENARIOS:
            self.assertIn(name, said)

    def test_wrong_use_is_named(self) -> None:
        for arguments, said in (
            (["nonsense"], "nonsense"),
            (["smoke", "--duration", "5 minutes"], "--duration"),
            (["smoke", "--rate", "0"], "--rate"),
            (["smoke", "--target", "ftp://x"], "ftp://x"),
            (["smoke", "--target", "http://127.0.0.1:1"], "127.0.0.1:1"),
        ):
            code, shown = self.main(*arguments)
            self.assertEqual((code, said in shown), (2, True), shown)

    def test_a_scenario_that_the_target_cannot_take_is_refused(self) -> None:
        alone = targets.Hooked([], "http://127.0.0.1:1", None)
        self.assertIn("replicas", scenarios.missing(scenarios.SCENARIOS["sharing"], alone))
        self.assertIn("--hook", scenarios.missing(scenarios.SCENARIOS["rolling-restart"], alone))
        self.assertIn("compose-scale-out", scenarios.missing(scenarios.SCENARIOS["failover"], alone))
        self.assertIsNone(scenarios.missing(scenarios.SCENARIOS["smoke"], alone))

    def inspect(self, scenario: scenarios.Scenario, env: dict[str, str]) -> subprocess.CompletedProcess:
        script = LOADTEST / "k6" / f"{scenario.script or scenario.name}.js"
        clean = {k: v for k, v in os.environ.items() if k not in ("TARGETS", "EDGE", "PROFILE")}
        command = [str(k6.BINARY), "inspect", str(script), "--include-system-env-vars"]
        return subprocess.run(command, env={**clean, **env}, capture_output=True, text=True, check=False)

    def test_a_scenario_without_a_script_of_its_own_is_a_profile_of_one(self) -> None:
        rates = {}
        for scenario in scenarios.SCENARIOS.values():
            if scenario.script:
                done = self.inspect(scenario, {"EDGE": "http://127.0.0.1:1", "PROFILE": scenario.name})
                self.assertEqual(done.returncode, 0, done.stderr)
                found = json.loads(done.stdout)["scenarios"]
                rates[scenario.name] = (found["checks"]["rate"], found["visits"]["rate"], found["checks"]["duration"])
            elif scenario.name != "throughput":
                self.assertTrue((LOADTEST / "k6" / f"{scenario.name}.js").exists(), scenario.name)
        wanted = {"average": (200, 1, "1m0s"), "soak": (100, 1, "30m0s"), "rolling-restart": (150, 2, "1m0s")}
        self.assertEqual(rates, wanted)

    def test_k6_scripts_name_what_is_wrong_with_their_environment(self) -> None:
        for env, said in (
            ({}, "set TARGETS"),
            ({"EDGE": "localhost:80"}, "not a base URL"),
            ({"EDGE": "http://127.0.0.1:1", "RATE": "many"}, "RATE"),
            ({"EDGE": "http://127.0.0.1:1", "DURATION": "1 m"}, "DURATION"),
            ({"EDGE": "http://127.0.0.1:1", "PROFILE": "storm"}, "PROFILE is one of"),
        ):
            done = self.inspect(scenarios.SCENARIOS["average"], env)
            self.assertNotEqual(done.returncode, 0, env)
            self.assertIn(said, done.stderr)


class Elsewhere(unittest.TestCase):
    """Replaces docker and kubectl by scripts that record their arguments, because not every machine has them."""

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.bin = Path(scratch.name)
        self.calls = self.bin / "calls"
        path = mock.patch.dict(os.environ, {"PATH": f"{self.bin}:{os.environ['PATH']}", "CALLS": str(self.calls)})
        path.start()
        self.addCleanup(path.stop)

    def tool(self, name: str, cases: str) -> None:
        script = self.bin / name
        script.write_text(f'#!/bin/sh\necho "{name} $*" >> "$CALLS"\ncase "$*" in\n{cases}\n*) exit 0;; esac\n')
        script.chmod(0o755)

    def test_compose_asks_containers_and_restarts_services(self) -> None:
        self.tool(
            "docker",
            '*"config --services"*) printf "redis\\nreplica-10\\nreplica-2\\nreplica-1\\nnginx\\n";;\n'
            '*"ps -q"*) echo "id-$5";;\n*inspect*) echo 10.9.8.7;;',
        )
        with mock.patch.object(targets, "connects", lambda host, port: (host, port) == ("10.9.8.7", 3000)):
            target = targets.Compose()
        self.assertEqual(target.services, ["replica-1", "replica-2", "replica-10"])
        self.assertEqual(target.replicas, ["http://10.9.8.7:3000"] * 3)
        target.restart(1)
        target.kill(0)
        target.kill_redis()
        said = self.calls.read_text()
        for call in ("docker compose stop replica-2", "docker compose kill replica-1", "docker compose kill redis"):
            self.assertIn(call, said)

    def test_compose_that_is_down_says_what_to_do(self) -> None:
        self.tool("docker", '*"config --services"*) echo replica-1;;')
        with self.assertRaisesRegex(targets.TargetError, "docker compose up"):
            targets.Compose()

    def test_volumes_that_replicas_share_are_named(self) -> None:
        mounts = {"replica-1": "own-1 both", "replica-2": "own-2 both"}
        cases = []
        for name, volumes in mounts.items():
            found = json.dumps([{"Mounts": [{"Name": volume} for volume in volumes.split()]}])
            cases.append(f"\"inspect {name}\") echo '{found}';;")
        services = '*"config --services"*) printf "replica-1\\nreplica-2\\n";;'
        asked = (
            '*"ps --services"*) echo sentinel-1;;\n*"ps -q replica-1 replica-2"*) printf "replica-1\\nreplica-2\\n";;'
        )
        self.tool(
            "docker", "\n".join([services, asked, *cases, '*"ps -q"*) echo some;;', "*inspect*) echo 10.9.8.7;;"])
        )
        with mock.patch.object(targets, "connects", lambda *_: True):
            target = targets.ComposeScaleOut()
        self.assertEqual(target.shared_volumes(), {"both"})
        self.assertIn("-f deploy/compose/scale-out.yml", self.calls.read_text())

    def test_kubernetes_takes_ready_pods_alone(self) -> None:
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        pods = [
            {"metadata": {"name": "b"}, "status": ready},
            {"metadata": {"name": "a"}, "status": ready},
            {"metadata": {"name": "going", "deletionTimestamp": "now"}, "status": ready},
            {"metadata": {"name": "coming"}, "status": {}},
        ]
        (self.bin / "pods.json").write_text(json.dumps({"items": pods}))
        self.tool("kubectl", f'*"get pods"*) cat {self.bin}/pods.json;;\n*port-forward*) exec sleep 30;;')
        with contextlib.ExitStack() as stack, mock.patch.object(targets, "connects", lambda *_: True):
            target = targets.Kubernetes(stack, None)
            self.assertEqual(len(target.replicas), 2)
            target.restart(0)
            target.restart(1)
        said = self.calls.read_text()
        self.assertEqual(said.count("rollout restart deployment/authfleet-server"), 1)
        self.assertIn("pod/a", said)
        self.assertNotIn("pod/going", said)

    def test_kubernetes_says_why_a_forward_failed(self) -> None:
        (self.bin / "pods.json").write_text(
            json.dumps(
                {
                    "items": [
                        {"metadata": {"name": "a"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
                    ]
                }
            )
        )
        self.tool("kubectl", f'*"get pods"*) cat {self.bin}/pods.json;;\n*port-forward*) echo forbidden >&2; exit 1;;')
        with contextlib.ExitStack() as stack, self.assertRaisesRegex(targets.TargetError, "forbidden"):
            targets.Kubernetes(stack, None)

    def test_a_hook_is_called_with_action_and_part(self) -> None:
        self.tool("chaos", "")
        target = targets.Hooked(["http://127.0.0.1:1"], None, "chaos --now")
        target.restart(0)
        target.kill_redis()
        self.assertEqual(self.calls.read_text(), "chaos --now restart 1\nchaos --now kill redis\n")


if __name__ == "__main__":
    unittest.main()
