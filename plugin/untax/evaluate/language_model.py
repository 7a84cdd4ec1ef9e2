"""A model as lm-eval's own Hugging Face class, loaded without running foreign code or inventing weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from untax.errors import UntaxError

if TYPE_CHECKING:
    import torch
    from lm_eval.models.huggingface import HFLM


def load(model: str, *, batch_size: int | str, device: str | None, add_bos_token: bool | None) -> HFLM:
    """The model in the precision it was saved in, from safetensors only.

    Raises:
        UntaxError: the device is not there; the model cannot be loaded; tensors of the architecture are missing from
            its weights (transformers would fill them with random numbers).
    """
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    place = _device(device)
    try:
        network, report = AutoModelForCausalLM.from_pretrained(
            model, dtype="auto", use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # transformers, safetensors and the hub each raise their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UntaxError(f"The model cannot be loaded: {reason}", where=model, fix="See the reason above.") from error
    lacking = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if lacking:
        raise UntaxError(
            f"{len(lacking)} tensors are missing from the model's weights or have another shape: {lacking[0]}, ...",
            where=model,
            fix="Make or download the model again.",
        )
    try:
        return HFLM(
            pretrained=network.to(place),
            tokenizer=model,
            batch_size=batch_size,
            add_bos_token=add_bos_token,
            device=str(place),
        )
    except (OSError, ValueError) as error:
        raise UntaxError(
            f"The tokenizer cannot be loaded: {str(error).splitlines()[0]}",
            where=model,
            fix="Copy the base model's tokenizer files into the folder.",
        ) from error


def _device(name: str | None) -> torch.device:
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        problem = f"There is no device '{name}': {str(error).splitlines()[0]}"
        raise UntaxError(problem, where="--device", fix="Use cpu, cuda or mps.") from error
    return device
