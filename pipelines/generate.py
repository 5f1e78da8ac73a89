"""Text from a registered model.

python pipelines/generate.py --prompt "def " [--model NAME | URI | FOLDER]
"""

import argparse
import sys
from pathlib import Path

from pipelines.runtime.errors import ConfigError, Parser, run_command


def main() -> None:
    """Load the model and write its text as it comes."""
    arguments = _arguments()
    if not arguments.prompt:
        raise ConfigError("--prompt: expected at least one character")
    from dca.sampling import check_sampling
    from pipelines.runtime.tracking import connect, load_packaged, tracking_uri

    options = {
        "max_new_tokens": arguments.max_new_tokens,
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
    }
    try:
        check_sampling(**options)
    except ValueError as error:
        raise ConfigError(f"--{str(error).replace('_', '-')}") from None
    connect(tracking_uri())
    packaged = load_packaged(_uri(arguments.model))
    sys.stdout.write(arguments.prompt)
    for text in packaged.continuation(arguments.prompt, seed=arguments.seed, **options):
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _uri(model: str) -> str:
    """A registered model's champion by its bare name; anything else as it is."""
    if ":" in model or Path(model).is_dir():
        return model
    if "/" in model:
        raise ConfigError(f"--model: {model}: no such folder")
    name, _, alias = model.partition("@")
    return f"models:/{name}@{alias or 'champion'}"


def _arguments() -> argparse.Namespace:
    parser = Parser(prog="generate.py", description="Text from a registered model.")
    parser.add_argument("--prompt", required=True, help="text to continue")
    parser.add_argument(
        "--model",
        default="dca-gpt",
        help="registered model, whose champion writes (default: dca-gpt), NAME@ALIAS, "
        "a models:/ or runs:/ URI, or a folder",
    )
    parser.add_argument("--max-new-tokens", type=int, default=200, help="bytes to write (200)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: the likeliest byte (0.8)"
    )
    parser.add_argument("--top-k", type=int, help="sample from this many likeliest bytes")
    parser.add_argument("--top-p", type=float, help="sample from the likeliest bytes of this mass")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (0)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main, resumes=False)
