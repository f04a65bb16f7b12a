"""In processes of their own, for a limit that was lowered stays so."""

import subprocess
import sys

SCRIPT = """
import resource
from neobench.harness.descriptors import allow_connections
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
print(allow_connections({wanted}, needed={needed}))
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def run(hard: int, wanted: int, needed: int = 0) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(hard=hard, wanted=wanted, needed=needed)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_the_soft_limit_is_raised_to_what_is_wanted():
    assert run(hard=1_000, wanted=500).stdout.split() == ["500", "628"]


def test_what_is_only_wanted_may_not_fit():
    assert run(hard=500, wanted=5_000).stdout.split() == ["372", "500"]


def test_what_is_needed_and_does_not_fit_is_an_error_that_says_the_fix():
    done = run(hard=500, wanted=0, needed=10_000)
    assert done.returncode == 1
    assert "10000 requests in flight need 10128 open files, but a process may have 500" in done.stderr
    assert "ulimit -Hn 10128" in done.stderr
    assert "--concurrency at 372 or less" in done.stderr
