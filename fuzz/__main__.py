"""``python -m fuzz``: lets atheris look for bytes that break a target, for a time; the exit code is 1 if it found any.

New finds of the search stay below ``build/fuzz``; bytes that broke something are named there as libFuzzer names them
(``crash-``, ``timeout-``, ``oom-``). A find that was mended belongs into ``fuzz/corpus``, where the tests run it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

_HERE = Path(__file__).parent
_NAMES = ("decoder", "schema")
_HANG_S = 5  # one input may take so long; the slowest honest one takes milliseconds


def main(arguments: list[str]) -> int:
    """Run each target in a child process: libFuzzer ends the process it runs in."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Coverage-guided fuzzing with atheris.")
    parser.add_argument("--target", choices=_NAMES, help="only this one")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="where finds go (build/fuzz)")
    given = parser.parse_args(arguments)
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("atheris is not installed: there are wheels for Linux on x86-64. `make test ARGS=\"-k fuzz\"` searches "
              "with hypothesis instead", file=sys.stderr)  # fmt: skip
        return 2
    broken = 0
    for name in (given.target,) if given.target else _NAMES:
        found, finds = given.out / "corpus" / name, given.out / "finds"
        for folder in (found, finds):
            folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "fuzz.search", name, str(found), str(_HERE / "corpus" / name),
                   f"-max_total_time={given.seconds}", f"-timeout={_HANG_S}", "-rss_limit_mb=2048", "-max_len=8192",
                   f"-artifact_prefix={finds}/", "-print_final_stats=1", "-verbosity=0"]  # fmt: skip
        done = subprocess.run(command, check=False)
        print(f"{name}: {'nothing found' if done.returncode == 0 else f'broken, see {finds}'}")
        broken += done.returncode != 0
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
