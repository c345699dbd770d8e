"""Folders of the diffusers library as terms: a pipeline's, or a network with its scheduler.

Nothing is downloaded, nothing is unpickled (weights are safetensors), and no code is run but that of diffusers and
transformers: a folder that asks for classes of other libraries is refused.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from boltzmix.compose.term import Term
from boltzmix.models.adapters.diffusers import NETWORKS
from boltzmix.models.adapters.schedulers import require_diffusers

_LIBRARIES = ("diffusers", "transformers")
_PARTS = ("unet", "transformer")


def from_folder(
    folder: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **hints: Any,
) -> Term:
    """The density that a folder of diffusers holds.

    Args:
        folder: what ``pipeline.save_pretrained`` wrote (``model_index.json`` and a folder for each component), or a
            network's folder ``unet/`` or ``transformer/`` beside ``scheduler/``, or a network's ``config.json`` beside
            ``scheduler_config.json``.
        device, dtype: where and as what the networks are loaded.
        **hints: of ``from_pipeline`` or ``from_diffusers``.

    Raises:
        MissingExtra: diffusers is not installed.
        FileNotFoundError: a file is missing; the message names it.
        ValueError: a damaged configuration, or one that asks for code of other libraries.
    """
    require_diffusers()
    import diffusers as library

    diffusers: Any = library
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if (folder / "model_index.json").exists():
        from boltzmix.models.adapters.pipelines import from_pipeline

        with _quiet(diffusers):
            pipeline = _pipeline(diffusers, folder, dtype)
        pipeline = pipeline if device is None else pipeline.to(device)
        return from_pipeline(pipeline, **hints)
    from boltzmix.models.adapters.diffusers import from_diffusers

    inside = next((folder / part for part in _PARTS if (folder / part).is_dir()), folder)
    own = _configuration(inside / "config.json", "of a network, or model_index.json of a pipeline")
    scheduler = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    planned = _configuration(scheduler / "scheduler_config.json", "of the scheduler that the network was trained with")
    if own.get("_class_name") not in NETWORKS:
        raise ValueError(
            f"{inside / 'config.json'} is of a {own.get('_class_name')!r}, the networks known are {', '.join(NETWORKS)}"
        )
    kind: Any = getattr(diffusers, str(planned.get("_class_name")), None)
    if not isinstance(kind, type) or not issubclass(kind, diffusers.SchedulerMixin):
        raise ValueError(
            f"{scheduler / 'scheduler_config.json'} is of a {planned.get('_class_name')!r}, which is no scheduler of "
            "diffusers"
        )
    _weights(inside)
    with _quiet(diffusers):
        options: dict[str, Any] = {} if dtype is None else {"torch_dtype": dtype}
        net = getattr(diffusers, own["_class_name"]).from_pretrained(
            str(inside), use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, **options
        )
    net = net.eval() if device is None else net.eval().to(device)
    return from_diffusers(net, kind.from_config(planned), **hints)


def _pipeline(diffusers: Any, folder: Path, dtype: torch.dtype | None) -> Any:
    index = _configuration(folder / "model_index.json", "of a pipeline")
    name = index.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not isinstance(kind, type) or not issubclass(kind, diffusers.DiffusionPipeline):
        raise ValueError(f"{folder / 'model_index.json'} asks for {name!r}, which is no pipeline of diffusers")
    for part, found in index.items():
        if part.startswith("_") or not isinstance(found, list) or len(found) != 2 or found[0] is None:
            continue
        library, component = found
        if library not in _LIBRARIES:
            raise ValueError(
                f"{folder / 'model_index.json'} asks for {component} of {library!r}; only classes of diffusers and "
                "transformers are loaded: load the pipeline yourself, and pass it to boltzmix.term()"
            )
        own = folder / part
        if not own.is_dir():
            raise FileNotFoundError(f"{own} is missing, which {folder / 'model_index.json'} names ({component})")
        if "Scheduler" in component:
            _configuration(own / "scheduler_config.json", f"of the {component}")
        elif "Tokenizer" not in component and "Processor" not in component and "Extractor" not in component:
            _configuration(own / "config.json", f"of the {component}")
            _weights(own)
    options: dict[str, Any] = {} if dtype is None else {"torch_dtype": dtype}
    return kind.from_pretrained(
        str(folder), use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, **options
    )


def _configuration(path: Path, what: str) -> dict[str, Any]:
    """A JSON file that must be there."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the configuration {what}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError("it holds no dictionary")
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return found


def _weights(folder: Path) -> None:
    """Complain of weights that are not there, or are not safetensors."""
    for index in folder.glob("*.safetensors.index.json"):
        shards = _configuration(index, "of the weights").get("weight_map", {})
        for shard in sorted(set(shards.values())):
            if not (folder / shard).is_file():
                raise FileNotFoundError(f"{folder / shard} is missing, which {index.name} names")
        return
    if any(folder.glob("*.safetensors")):
        return
    wanted = folder / ("model.safetensors" if folder.name.startswith("text_encoder") else _NETWORK_FILE)
    other = sorted(p.name for p in folder.glob("*.bin"))
    extra = (
        f"; {other[0]} is there, and is not read because it would be unpickled: save it as safetensors" if other else ""
    )
    raise FileNotFoundError(f"{wanted} is missing: the weights{extra}")


_NETWORK_FILE = "diffusion_pytorch_model.safetensors"


@contextmanager
def _quiet(diffusers: Any) -> Iterator[None]:
    """Without the library's own progress bar."""
    log = diffusers.utils.logging
    shown = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            log.enable_progress_bar()
