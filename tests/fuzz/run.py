"""Drives a harness with octets that find new ways through the code: `python -m tests.fuzz.run TARGET [libFuzzer's
options]`.

It needs Atheris (`pip install 'kdns[fuzz]'`; there are wheels for Linux on x86-64). It begins with
tests/fuzz/corpus/TARGET and what earlier runs left in .fuzz/TARGET. Octets that show a mistake are written to
.fuzz/TARGET-crash-*: put them into the corpus under a name that says what was wrong, and they are tried at each `make
test` from then on.
"""

import sys
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
WORK = Path(".fuzz")


def main() -> None:
    """Fuzzes until the time is over or something is found."""
    try:
        import atheris
    except ImportError:
        sys.exit("Atheris is not installed: pip install 'kdns[fuzz]' (wheels are for Linux on x86-64)")
    with atheris.instrument_imports(include=["kdns"]):
        from kdns import log
        from kdns.server import catalog
        from tests.fuzz import harnesses

        for name in catalog.built():
            catalog.plugin_class(name)  # now: to import and instrument one takes longer than an input may
    log.emit = lambda line: None  # a line for each query would hide what is found
    if len(sys.argv) < 2 or sys.argv[1] not in harnesses.HARNESSES:
        sys.exit(f"usage: python -m tests.fuzz.run {'|'.join(harnesses.HARNESSES)} [-max_total_time=SECONDS]")
    target = sys.argv.pop(1)
    work = WORK / target
    work.mkdir(parents=True, exist_ok=True)
    options = [f"-artifact_prefix={WORK}/{target}-", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]
    words = [*options, *sys.argv[1:], str(work), str(CORPUS / target)]
    atheris.Setup([sys.argv[0], *words], harnesses.HARNESSES[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
