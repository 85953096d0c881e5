"""``python -m bench``: see :mod:`bench`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench import report
from bench.run import CASES, QUICK, Choice, Measured, break_down, run
from pipeline.errors import PipelineError


def main(words: list[str] | None = None) -> int:
    """Measures and prints the tables; the exit code is 0 however they turn out, 2 for wrong words or missing tools."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Deployments, measured beside the peers'.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hosts", type=int, default=50, help="hosts of the case hosts")
    parser.add_argument("--only", default="", metavar="CASE,…", help=f"of {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help=f"one round of {', '.join(QUICK)}, without Fabric")
    parser.add_argument("--no-fabric", action="store_true", help="without the Fabric script, which takes longest")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample, as JSON")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where to work: 8 GB for 50 hosts; it must not exist"
    )
    parser.add_argument("--keep", action="store_true", help="leave the folder there")
    parser.add_argument(
        "--breakdown", action="store_true", help="instead: where the time of one deployment to HOSTS goes"
    )
    given = parser.parse_args(words)
    cases = tuple(filter(None, given.only.split(","))) or (QUICK if given.quick else CASES)
    if wrong := set(cases) - set(CASES):
        parser.error(f"no case is called {', '.join(sorted(wrong))}; there are {', '.join(CASES)}")
    choice = Choice(
        rounds=1 if given.quick else max(1, given.rounds),
        hosts=max(1, given.hosts),
        cases=cases,
        fabric=not (given.quick or given.no_fabric),
    )
    folder = given.folder.absolute() if given.folder else Path(tempfile.mkdtemp(prefix="tma-bench-"))
    try:
        folder.mkdir(parents=True, exist_ok=not given.folder)
        if given.breakdown:
            break_down(folder, choice.hosts)
            return 0
        measured = run(choice, folder, lambda line: print(line, file=sys.stderr, flush=True))
    except PipelineError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    finally:
        if given.keep:
            print(f"left there: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(report.text(measured))
    if given.json:
        given.json.write_text(json.dumps(_plain(measured), indent=1))
    if given.write:
        report.write(measured)
    return 0


def _plain(measured: Measured) -> dict[str, object]:
    return {
        case: {who: [sample and asdict(sample) for sample in samples] for who, samples in row.items()}
        for case, row in measured.samples.items()
    }


if __name__ == "__main__":
    sys.exit(main())
