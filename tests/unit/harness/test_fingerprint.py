import json
import stat
import subprocess
import time

import neobench
from neobench.harness import fingerprint
from neobench.harness.fingerprint import take_fingerprint


def test_is_plain_json_and_fast():
    take_fingerprint()
    started = time.process_time()
    taken = take_fingerprint()
    assert time.process_time() - started < 0.3
    assert json.loads(json.dumps(taken)) == taken
    assert taken["software"]["neobench"] == neobench.__version__
    assert taken["software"]["packages"]["numpy"]
    assert taken["memory"]["total_bytes"] > 2**20
    assert taken["cpu"]["available_cores"] >= 1


def test_never_fails(monkeypatch, tmp_path):
    def fail(*_args, **_options):
        raise RuntimeError("nothing can be read here")

    monkeypatch.setattr(fingerprint, "_read", fail)
    monkeypatch.setattr(fingerprint, "_SYSTEM", tmp_path)
    monkeypatch.setattr(fingerprint.subprocess, "run", fail)
    monkeypatch.setattr(fingerprint.platform, "release", fail)
    taken = take_fingerprint()
    assert taken["software"] is None
    assert taken["source"] is None
    assert taken["cpu"]["governor"] is taken["cpu"]["l3_bytes"] is taken["cpu"]["numa_nodes"] is None


def test_gpus_as_the_driver_lists_them(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771, 570.86'\necho 'Odd GPU, [N/A], 570.86'\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert take_fingerprint()["gpus"] == [
        {"name": "NVIDIA H200", "memory_bytes": 143771 * 2**20, "driver": "570.86"},
        {"name": "Odd GPU", "memory_bytes": None, "driver": "570.86"},
    ]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert take_fingerprint()["gpus"] is None


def test_somebody_elses_repository_is_not_our_source(monkeypatch, tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    installed = tmp_path / "lib" / "neobench" / "harness" / "fingerprint.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    monkeypatch.setattr(fingerprint, "__file__", str(installed))
    assert fingerprint.source_state() is None


def test_state_of_a_checkout(monkeypatch, tmp_path):
    module = tmp_path / "harness" / "fingerprint.py"
    module.parent.mkdir()
    module.write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(fingerprint, "__file__", str(module))
    clean = fingerprint.source_state()
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    module.write_text("# changed\n")
    assert fingerprint.source_state() == {"commit": clean["commit"], "dirty": True}
