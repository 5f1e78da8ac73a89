"""Text from a model, or the bits per byte of a text under a model.

python pipelines/generate.py --prompt "def " [--model MODEL]
python pipelines/generate.py --score FILE [--model MODEL]
"""

try:
    from pipelines.console import end_on_interrupt
except ModuleNotFoundError:  # this project is not installed: only what lies beside this is found
    from console import end_not_installed as end_on_interrupt  # type: ignore

if __name__ == "__main__":
    end_on_interrupt()

import argparse
import codecs
import itertools
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from pipelines.console.command import DONE, Parser, run_command
from pipelines.console.errors import ConfigError, PipelineError, Problem
from pipelines.console.options import integer, real_number
from pipelines.console.process import process_restored, raise_output_error
from pipelines.console.progress import Progress
from pipelines.console.text import counted, first_line, for_stream, json_text, one_line, shorten
from pipelines.console.updates import OutputMode
from pipelines.storage.scratch import scratch_folder

SEPARATOR = 20 * "-"
MAX_BYTES, MAX_STOP, MAX_SEED = 65_536, 1024, 2**63 - 1
"""Of a prompt and of its continuation, characters of `stop`, and the seed of a text."""
LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "samples": (lambda count: 1 <= count <= MAX_SEED, "1 to 2**63 - 1"),
    "max_new_tokens": (lambda count: 0 <= count <= MAX_BYTES, f"0 to {MAX_BYTES}"),
    "temperature": (lambda value: 0 <= value < math.inf, "a finite number of at least 0"),
    "top_k": (lambda count: count >= 1, "at least 1"),
    "top_p": (lambda share: 0 < share <= 1, "more than 0 and at most 1"),
    "seed": (lambda seed: 0 <= seed <= MAX_SEED, "0 to 2**63 - 1"),
    "stop": (lambda text: len(text) <= MAX_STOP, f"at most {MAX_STOP} characters"),
}
"""Options of a text that is generated, as a packaged model takes them: it has a check of its own,
which an older one may have differently, but loading it takes seconds."""
MAX_SCORED_BYTES = 100_000_000
"""Of a text: its probabilities, 8 bytes for each of its own, are in memory together."""
MODEL = "dca-gpt"
STANDARD_INPUT = "standard input"


@process_restored()
def main(argv: Sequence[str]) -> int:
    """Load the model and write its text as it is sampled.

    Nothing here imports `dca`: a model is loaded with the sources in its own package. If this
    process has others, as a notebook may, the command runs in a process of its own.
    """
    arguments = _parse(argv)
    text = None if arguments.score is None else _read(arguments.score)
    prompts = _prompts(arguments) if text is None else []
    with _fetched(arguments.model) as (folder, label):
        from pipelines.registry.package import load_model, runs_here

        with Progress(stderr=True).waiting(f"loading {one_line(label)}"):
            packaged = load_model(folder) if runs_here(folder) else None
        if packaged is None:
            return _run_alone(argv, prompts)
        print(label, file=sys.stderr)
        if text is None:
            try:
                _generate(packaged, prompts, label, arguments)
            except RuntimeError as error:  # as of probabilities that are no numbers
                raise PipelineError(f"{label}: {first_line(error)}") from error
        else:
            _score(packaged, text, label, arguments)
    return DONE


def _generate(packaged: Any, prompts: list[str], label: str, arguments: argparse.Namespace) -> None:
    """Print every sample of every prompt, each as it is written."""
    from pipelines.registry.packaged_model import DEFAULTS

    given = {name: getattr(arguments, name) for name in DEFAULTS}
    options = {name: DEFAULTS[name] if value is None else value for name, value in given.items()}
    first = options.pop("seed")
    seeds = range(first, first + (arguments.samples or 1))
    try:
        for seed in (seeds[0], seeds[-1]):
            packaged.check(prompts, seed=seed, **options)
    except ValueError as error:
        raise ConfigError(_problem(error)) from None
    texts = ((prompt, seed) for prompt in prompts for seed in seeds)  # which may be millions
    count = len(prompts) * len(seeds)
    for number, (prompt, seed) in enumerate(texts):
        parts = packaged.continuation(prompt, seed=seed, **options)
        if arguments.json:
            with Progress(stderr=True).waiting(f"writing text {number + 1} of {count}"):
                text = prompt + "".join(parts)
            row = {"model": label, "prompt": prompt, "seed": seed, "text": text}
            escaped = sys.stdout.isatty() or not _is_utf8(sys.stdout)
            print(json.dumps(row, ensure_ascii=escaped), flush=True)
            raise_output_error()
            continue
        if number:
            print(SEPARATOR)
        preparing = Progress(stderr=True).waiting("preparing the model")
        with nullcontext() if number else preparing:  # it may have to compile its kernels
            begin = next(parts, "")
        for part in itertools.chain([prompt, begin], parts):
            sys.stdout.write(for_stream(part, sys.stdout))
            sys.stdout.flush()
            raise_output_error()
        print(flush=True)


def _is_utf8(stream: TextIO) -> bool:
    """Whether a stream has every character; one without an encoding is in memory."""
    return codecs.lookup(stream.encoding or "utf-8").name == "utf-8"


def _problem(error: ValueError) -> Problem:
    """What a package's check found: its `dca` has FieldError, or is older and has only a text."""
    field = getattr(error, "field", "")
    if not field:
        return Problem(str(error))
    return Problem(getattr(error, "message", ""), _option(field))


def _score(packaged: Any, text: bytes, label: str, arguments: argparse.Namespace) -> None:
    """Print the bits per byte of a text."""
    import numpy as np

    if len(text) < 2:
        raise ConfigError(Problem(f"{arguments.score}: expected at least 2 bytes", "--score"))
    size = f"{counted(len(text), 'byte')} of {one_line(arguments.score)}"
    mode = OutputMode.QUIET if arguments.json else OutputMode.TEXT
    with Progress(mode, stderr=True).waiting(f"scoring {size}"):
        bits = float(packaged.bits(np.frombuffer(bytearray(text), dtype=np.uint8)).mean())
    row = {"model": label, "file": arguments.score, "bytes": len(text), "bits_per_byte": bits}
    print(json_text(row) if arguments.json else f"{bits:.4f} bits per byte of {size}")


def _run_alone(argv: Sequence[str], prompts: list[str]) -> int:
    """The same command in a process of its own, which shows its text as it is written."""
    from pipelines.console.isolated import isolated_command, isolated_environment

    encoding = sys.stdout.encoding or "utf-8"  # a stream in memory has none
    with tempfile.TemporaryFile("w+", encoding="utf-8") as given:
        given.write("\n".join(prompts))  # read if they came from standard input
        given.seek(0)
        child = subprocess.Popen(
            isolated_command("pipelines.generate", argv),
            env={**isolated_environment(), "PYTHONIOENCODING": encoding},
            stdin=given,
            stdout=subprocess.PIPE,
        )
        with child:
            assert child.stdout is not None
            decoder = codecs.getincrementaldecoder(encoding)("replace")
            while part := child.stdout.read1():  # type: ignore[attr-defined]
                sys.stdout.write(for_stream(decoder.decode(part), sys.stdout))
                sys.stdout.flush()
                raise_output_error()
    return child.returncode


@contextmanager
def _fetched(model: str) -> Iterator[tuple[Path, str]]:
    """The folder of a packaged model, the user's or one from the registry, and a label of it."""
    from pipelines.registry.package import fetch_model, local_folder

    with scratch_folder() as scratch:
        folder, label = local_folder(model), model
        if folder is None:
            from pipelines.registry.resolve import resolve_model
            from pipelines.tracking.client import connect_existing
            from pipelines.tracking.models import ModelStore

            models = ModelStore(connect_existing())
            model_id, label = resolve_model(models.client, model, name=MODEL)
            with Progress(stderr=True).waiting(f"fetching {label}"):
                folder = fetch_model(models, model_id, scratch)
        yield folder, label


def _prompts(arguments: argparse.Namespace) -> list[str]:
    """The prompts of the command line, of a file or of standard input."""
    given, source = list(arguments.prompt or []), ""
    if "" in given:
        which = f", got none in number {given.index('') + 1}" if len(given) > 1 else ""
        raise ConfigError(Problem(f"expected at least one character{which}", "--prompt"))
    if arguments.prompts is not None:
        source = arguments.prompts
        prompts = _lines(_read(source), source)
    elif not given and sys.stdin is not None and not sys.stdin.isatty():
        try:
            with _waiting(STANDARD_INPUT):
                text = sys.stdin.buffer.read() or b""  # None of one that is not waited for
        except (OSError, ValueError) as error:  # it may be open for writing, or closed
            reason = getattr(error, "strerror", None) or error
            message = f"cannot be read: {reason}; expected --prompt TEXT or --prompts FILE"
            raise ConfigError(Problem(message, source=STANDARD_INPUT)) from None
        source = STANDARD_INPUT
        prompts = _lines(text, source)
    else:
        prompts = given
    if not prompts:
        message = "expected a TEXT, or --prompts FILE or standard input with a prompt in each line"
        raise ConfigError(Problem(message, "--prompt"))
    for number, prompt in enumerate(prompts, 1):
        if (size := len(prompt.encode())) > MAX_BYTES:
            message = f"expected at most {MAX_BYTES} bytes, got {size}"
            where = f"line {number}" if source else "--prompt"
            raise ConfigError(Problem(message, where, source))
    return prompts


def _lines(data: bytes, source: str) -> list[str]:
    """The prompts of a text, one in each line."""
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(Problem(f"not UTF-8: {error}", source=source)) from None
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if "" not in lines:
        return lines
    which = f"line {lines.index('') + 1} is empty" if any(lines) else "is empty"
    others = " or --prompt TEXT or --prompts FILE" if source == STANDARD_INPUT else ""
    raise ConfigError(Problem(f"{which}; expected a prompt in each line{others}", source=source))


@contextmanager
def _waiting(file: str) -> Iterator[None]:
    """Show, if a block takes long, that it reads a file: a pipe is read until its writer ends."""
    with Progress(stderr=True).watching(lambda: f"reading {one_line(file)}"):
        yield


def _read(file: str) -> bytes:
    """A text of at most MAX_SCORED_BYTES; a device without an end is not read for ever."""
    try:
        with _waiting(file), Path(file).open("rb") as opened:
            text = opened.read(MAX_SCORED_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(Problem(f"cannot be read: {reason}", source=file or "no file")) from None
    if len(text) > MAX_SCORED_BYTES:
        message = f"has more than {MAX_SCORED_BYTES:,} bytes; expected a part of it"
        raise ConfigError(Problem(message, source=file))
    return text


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="generate.py",
        description="Text from a model: a continuation of each prompt, as it is written.",
        epilog="MODEL is a registered model, whose champion writes (default: dca-gpt), "
        "NAME@ALIAS, NAME/VERSION, a number, latest or @ALIAS of dca-gpt, a models:/ or runs:/ "
        "URI, the id of a run or of a logged model, or a folder.",
    )
    parser.add_argument("--model", default=MODEL, help="the model; see below")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated")
    parser.add_argument("--prompts", metavar="FILE", help="a prompt a line; else standard input")
    parser.add_argument("--samples", type=integer, metavar="N", help="texts of each prompt (1)")
    parser.add_argument("--max-new-tokens", type=integer, metavar="N", help="bytes to write (200)")
    parser.add_argument(
        "--temperature", type=real_number, metavar="T", help="0: the likeliest (0.8)"
    )
    parser.add_argument(
        "--top-k", type=integer, metavar="K", help="from the K likeliest bytes (40)"
    )
    parser.add_argument(
        "--top-p", type=real_number, metavar="P", help="of this probability together (1)"
    )
    parser.add_argument(
        "--seed", type=integer, help="of the first sample; each further one adds 1 (0)"
    )
    parser.add_argument("--stop", metavar="TEXT", help="end before this text")
    parser.add_argument("--score", metavar="FILE", help="bits per byte of a text, no generation")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each text")
    arguments = parser.parse_args(argv)
    if arguments.prompt and arguments.prompts is not None:
        raise ConfigError(Problem("expected without --prompt", "--prompts"))
    if arguments.score is not None and (arguments.prompt or arguments.prompts):
        raise ConfigError(Problem("expected without --prompt and --prompts", "--score"))
    if arguments.score is not None and (
        unused := [key for key in LIMITS if vars(arguments)[key] is not None]
    ):
        message = f"expected without {_option(unused[0])}: nothing is generated"
        raise ConfigError(Problem(message, "--score"))
    _check_limits(arguments)
    return arguments


def _check_limits(arguments: argparse.Namespace) -> None:
    """Raise ConfigError for the options of a text that no packaged model takes."""
    given = {key: vars(arguments)[key] for key in LIMITS if vars(arguments)[key] is not None}
    for key, value in given.items():
        accepts, expected = LIMITS[key]
        if not accepts(value):
            got = len(value) if isinstance(value, str) else shorten(str(value))
            raise ConfigError(Problem(f"expected {expected}, got {got}", _option(key)))
    first, samples = given.get("seed", 0), given.get("samples", 1)
    if first + samples - 1 > MAX_SEED:
        message = (
            f"expected at most 2**63 - 1 as the seed of the last sample, got {shorten(str(first))} "
            f"+ {shorten(str(samples))} - 1"
        )
        raise ConfigError(Problem(message, "--samples"))


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv))
