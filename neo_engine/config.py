"""Shapes of models and the settings of an engine. Defaults live here and nowhere else. Knows no torch."""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from neobench.neo_engine.kv_cache.layout import KvLayout

DType = Literal["float32", "bfloat16", "float16"]
HostKvDType = Literal["same", "int8"]
Device = Literal["cpu", "cuda"]
SM_GRAIN = 8
"""SMs of a green context come in multiples of this on Hopper GPUs."""
USABLE_MEMORY_FRACTION = 0.9
"""Of a GPU's memory for weights, activations and KV, the rest for graphs and what nobody foresees: vLLM's default."""
DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


class ConfigError(ValueError):
    """A model or engine setting that cannot work; the message names the setting and says what would."""


@dataclass(frozen=True)
class Llama3RopeScaling:
    """The frequency-dependent position scaling of Llama 3.1 (rope_type "llama3" of a Hugging Face config)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True)
class ModelShape:
    """Everything that fixes the arithmetic of a Llama model, and nothing about where it runs."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: Llama3RopeScaling | None = None
    tied_embeddings: bool = False
    attention_bias: bool = False
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_query_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_query_heads ({self.num_query_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})"
            )

    @property
    def num_parameters(self) -> int:
        query = self.num_query_heads * self.head_dim
        key_value = self.num_kv_heads * self.head_dim
        layer = self.hidden_size * (2 * query + 2 * key_value + 3 * self.intermediate_size + 2)
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size


def _llama(name: str, **sizes: Any) -> ModelShape:
    return ModelShape(name=name, **sizes)


_LLAMA31_ROPE = Llama3RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192)

NAMED_SHAPES: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        _llama(
            "tiny",
            num_layers=8,
            hidden_size=256,
            intermediate_size=512,
            num_query_heads=4,
            num_kv_heads=2,
            head_dim=64,
            vocab_size=4096,
            max_position=2048,
        ),
        _llama(
            "llama-2-7b",
            num_layers=32,
            hidden_size=4096,
            intermediate_size=11008,
            num_query_heads=32,
            num_kv_heads=32,
            head_dim=128,
            vocab_size=32000,
            max_position=4096,
            eos_token_ids=(2,),
        ),
        _llama(
            "llama-3.1-8b",
            num_layers=32,
            hidden_size=4096,
            intermediate_size=14336,
            num_query_heads=32,
            num_kv_heads=8,
            head_dim=128,
            vocab_size=128256,
            max_position=131072,
            rope_theta=500000.0,
            rope_scaling=_LLAMA31_ROPE,
            eos_token_ids=(128001, 128008, 128009),
        ),
        _llama(
            "llama-3.1-70b",
            num_layers=80,
            hidden_size=8192,
            intermediate_size=28672,
            num_query_heads=64,
            num_kv_heads=8,
            head_dim=128,
            vocab_size=128256,
            max_position=131072,
            rope_theta=500000.0,
            rope_scaling=_LLAMA31_ROPE,
            eos_token_ids=(128001, 128008, 128009),
        ),
    )
}


def resolve_shape(model: str) -> ModelShape:
    """The shape of a named model, or of a checkpoint folder's config.json.

    Raises ConfigError for a name that is neither, with the nearest known names.
    """
    if model in NAMED_SHAPES:
        return NAMED_SHAPES[model]
    if Path(model).is_dir():
        return shape_from_hf_config(Path(model))
    near = difflib.get_close_matches(model, NAMED_SHAPES, n=2, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(
        f"unknown model {model!r}{hint} Known shapes: {', '.join(NAMED_SHAPES)}; "
        "or give the folder of a Hugging Face Llama checkpoint (config.json and *.safetensors)"
    )


def shape_from_hf_config(folder: Path) -> ModelShape:
    """Read config.json of a Hugging Face Llama checkpoint. Raises ConfigError for what this engine cannot run."""
    path = folder / "config.json"
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{folder} has no config.json: not a Hugging Face checkpoint folder") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if raw.get("model_type") != "llama":
        raise ConfigError(f"{path}: model_type is {raw.get('model_type')!r}; this engine runs 'llama' only")
    if raw.get("mlp_bias"):
        raise ConfigError(f"{path}: mlp_bias is set; this engine has no bias in the MLP")
    if raw.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{path}: hidden_act is {raw['hidden_act']!r}; this engine knows 'silu' only")
    try:
        heads = int(raw["num_attention_heads"])
        return ModelShape(
            name=folder.resolve().name,
            num_layers=int(raw["num_hidden_layers"]),
            hidden_size=int(raw["hidden_size"]),
            intermediate_size=int(raw["intermediate_size"]),
            num_query_heads=heads,
            num_kv_heads=int(raw.get("num_key_value_heads") or heads),
            head_dim=int(raw.get("head_dim") or raw["hidden_size"] // heads),
            vocab_size=int(raw["vocab_size"]),
            max_position=int(raw["max_position_embeddings"]),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=_rope_theta(raw),
            rope_scaling=_rope_scaling(raw, path),
            tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
            attention_bias=bool(raw.get("attention_bias", False)),
            eos_token_ids=_eos_token_ids(raw),
        )
    except KeyError as error:
        raise ConfigError(f"{path}: required key {error} is missing") from None


def _rope_parameters(raw: dict[str, Any]) -> dict[str, Any]:
    # transformers 5 writes "rope_parameters" (theta included); earlier releases "rope_scaling" beside "rope_theta".
    return raw.get("rope_parameters") or raw.get("rope_scaling") or {}


def _rope_theta(raw: dict[str, Any]) -> float:
    return float(_rope_parameters(raw).get("rope_theta") or raw.get("rope_theta") or 10000.0)


def _rope_scaling(raw: dict[str, Any], path: Path) -> Llama3RopeScaling | None:
    parameters = _rope_parameters(raw)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise ConfigError(f"{path}: rope scaling {kind!r} is not supported; 'default' and 'llama3' are")
    return Llama3RopeScaling(
        factor=float(parameters["factor"]),
        low_freq_factor=float(parameters["low_freq_factor"]),
        high_freq_factor=float(parameters["high_freq_factor"]),
        original_max_position=int(parameters["original_max_position_embeddings"]),
    )


def _eos_token_ids(raw: dict[str, Any]) -> tuple[int, ...]:
    eos = raw.get("eos_token_id")
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (int(eos),)


@dataclass(frozen=True)
class EngineConfig:
    """Settings of one engine. `None` means: chosen at start from the machine and the model, and reported."""

    model: str = "tiny"
    policy: str = "asymmetric_pipeline"
    dtype: DType = "float32"
    seed: int = 0
    block_size: int = 16
    device_blocks: int = 256
    host_memory_bytes: int = 1 << 30
    host_kv_dtype: HostKvDType = "same"
    max_model_tokens: int | None = None
    max_batch_tokens: int = 2048
    max_batch_rows: int = 256
    device_threads: int | None = None
    host_threads: int | None = None
    pacpu_target: str = "auto"
    profile_path: Path | None = None
    correct_costs: bool = True
    """Whether measured iterations correct the cost tables; without it a plan depends on nothing but its tables."""
    device: Device = "cpu"
    emulate: str | None = None
    """The card that a restricted GPU stands for, a label: `emulation.emulated_settings` fills in the rest."""
    sms: int | None = None
    """SMs of the GPU that the engine may use; None: all."""
    device_memory_fraction: float | None = None
    """Where set, `device_blocks` means nothing yet: `kv_sizing.sized` finds them, so that with weights and the worst
    step this share of the GPU's memory is in use, and gives a config without it."""
    shape: ModelShape = field(init=False)

    def __post_init__(self) -> None:
        shape = resolve_shape(self.model)
        object.__setattr__(self, "shape", shape)
        if self.dtype not in DTYPE_BYTES:
            raise ConfigError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPE_BYTES)}")
        if self.host_kv_dtype not in get_args(HostKvDType):
            raise ConfigError(f"host_kv_dtype {self.host_kv_dtype!r} is not one of {', '.join(get_args(HostKvDType))}")
        for name in ("block_size", "device_blocks", "max_batch_tokens", "max_batch_rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.device not in get_args(Device):
            raise ConfigError(f"device {self.device!r} is not one of {', '.join(get_args(Device))}")
        if self.sms is not None:
            self._check_sms(self.sms)
        elif self.emulate is not None:
            raise ConfigError(f"emulate is {self.emulate!r} but sms is not set: use emulation.emulated_settings")
        if self.device_memory_fraction is not None:
            self._check_memory_fraction(self.device_memory_fraction)
        if self.max_model_tokens is not None and not 2 <= self.max_model_tokens <= shape.max_position:
            raise ConfigError(
                f"max_model_tokens must be between 2 and {shape.max_position} for {shape.name}, "
                f"not {self.max_model_tokens}"
            )

    def _check_sms(self, sms: int) -> None:
        if self.device != "cuda":
            raise ConfigError(f"sms restricts a CUDA device, but device is {self.device!r}")
        if sms < SM_GRAIN or sms % SM_GRAIN:
            raise ConfigError(f"sms must be a positive multiple of {SM_GRAIN}, not {sms}")

    def _check_memory_fraction(self, fraction: float) -> None:
        if self.device != "cuda":
            raise ConfigError(f"device_memory_fraction is of a GPU's memory, but device is {self.device!r}")
        if not 0 < fraction <= 1:
            raise ConfigError(f"device_memory_fraction must be above 0 and at most 1, not {fraction}")

    @property
    def device_layout(self) -> KvLayout:
        return self._layout(self.dtype)

    @property
    def host_layout(self) -> KvLayout:
        return self._layout(self.dtype if self.host_kv_dtype == "same" else self.host_kv_dtype)

    def _layout(self, dtype: str) -> KvLayout:
        from neobench.neo_engine.kv_cache.layout import KvLayout  # with numpy, which --help must not wait for

        return KvLayout(dtype, self.shape.head_dim, self.block_size)

    def block_bytes(self, layout: KvLayout) -> int:
        """K and V of one block in all layers: one contiguous piece of its tier."""
        return self.shape.num_layers * self.shape.num_kv_heads * layout.piece_bytes

    @property
    def host_blocks(self) -> int:
        return self.host_memory_bytes // self.block_bytes(self.host_layout)

    @property
    def max_request_tokens(self) -> int:
        """Longest prompt plus output that one request may have: bounded by the model and the larger KV tier in use.

        A device tier whose size is not known yet bounds nothing.
        """
        most = self.max_model_tokens or self.shape.max_position
        blocks = max(self.device_blocks, self.host_blocks)
        if self.policy == "full_offload":
            blocks = self.host_blocks
        elif self.device_memory_fraction is not None:
            return most
        elif self.policy in ("gpu_only", "chunked_prefill"):
            blocks = self.device_blocks
        return min(most, blocks * self.block_size)

    def blocks_for(self, num_tokens: int) -> int:
        return math.ceil(num_tokens / self.block_size)
