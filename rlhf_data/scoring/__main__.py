"""Scoring without the rest of the toolkit, on one process or several: `python -m rlhf_data.scoring --help`."""

import argparse
import json
import sys
from pathlib import Path

from rlhf_data.scoring.allocator import restart_flat


def main() -> None:
    """Score a file of requests; under torchrun, or with --processes, as one of several."""
    from xxhash import xxh3_128_hexdigest

    from rlhf_data.scoring import identity, models, workers
    from rlhf_data.scoring.recipe import ENCODING, NUMERICS
    from rlhf_data.scoring.scorer import score

    given = _arguments()
    if given.processes > 1 and workers.place().world == 1:
        codes = workers.launch(workers.own_command(), given.processes)
        if failed := [code for code in codes if code]:
            print(f"{len(failed)} of {given.processes} processes failed ({failed}): see above", file=sys.stderr)
            raise SystemExit(1)
        return
    here = workers.place()
    device = models.device_name(given.device)
    device = f"cuda:{here.local_rank}" if device == "cuda" and here.world > 1 else device
    model = {"path": given.model} | {
        name: value
        for name, value in (("gguf_file", given.gguf), ("revision", given.revision), ("adapter", given.adapter))
        if value
    }
    options = {
        name: getattr(given, name)
        for name in ("template", "max_length", "max_prompt_length", "dtype", "token_budget", "backend")
    }

    def run(claims: Path | None) -> None:
        recipe = score(
            given.requests,
            given.out,
            store=given.store,
            model=model,
            device=device,
            claims=claims,
            cache=given.cache,
            progress=here.rank == 0,
            **options,
        )
        if claims is None:
            print(json.dumps(recipe["counts"]))

    try:
        told = {
            **options,
            "template": identity.template_text(given.template),
            "model": identity.content_hash(model, given.cache),
            "code": (NUMERICS, ENCODING),
        }
        how = xxh3_128_hexdigest(json.dumps(told, sort_keys=True).encode())
        workers.together(given.requests, given.store, how, run)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rlhf_data.scoring", description=__doc__)
    parser.add_argument("requests", type=Path, help="Parquet with completion_id, prompt, completion")
    parser.add_argument("out", type=Path, help="Parquet to write")
    parser.add_argument("--store", type=Path, required=True, help="folder of the score store")
    parser.add_argument("--model", required=True, help="folder or name of the model")
    parser.add_argument("--gguf", help="file of the model's folder to read weights from")
    parser.add_argument("--revision", help="commit of the model")
    parser.add_argument("--adapter", help="folder of a LoRA adapter that is part of the model")
    parser.add_argument("--backend", default="torch", help="torch, or vllm where it is installed")
    parser.add_argument("--template", default="chat", help="chat, plain, or the path of a .jinja file")
    parser.add_argument("--max-length", type=int, default=1024, help="most tokens of prompt and completion")
    parser.add_argument("--max-prompt-length", type=int, help="most tokens of a prompt; 3/4 of --max-length")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    parser.add_argument("--token-budget", type=int, help="most tokens of a forward")
    parser.add_argument("--cache", type=Path, default=Path(".rlhf"), help="folder for digests and dequantised models")
    parser.add_argument("--processes", type=int, default=1, help="processes of this machine; with torchrun leave it")
    return parser.parse_args()


if __name__ == "__main__":
    restart_flat()
    main()
