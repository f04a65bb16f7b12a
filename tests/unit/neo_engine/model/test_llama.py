"""Our Llama against transformers' on random checkpoints: same logits, whatever the variant and the layout on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from neobench.neo_engine.config import ConfigError, EngineConfig, ModelShape, resolve_shape
from neobench.neo_engine.model import LlamaModel, build_model, load_checkpoint, random_model

CPU = torch.device("cpu")

BASE: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "rms_norm_eps": 1e-5,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa": {"num_key_value_heads": 2},
    "one_kv_head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 2},
    "llama3_rope": {"rope_parameters": LLAMA3_ROPE, "num_key_value_heads": 2},
    "attention_bias": {"attention_bias": True, "num_key_value_heads": 2},
    "explicit_head_dim": {"head_dim": 32, "num_key_value_heads": 2},
}


@pytest.fixture(autouse=True)
def _quiet_transformers() -> None:
    transformers_logging.disable_progress_bar()


def make_checkpoint(folder: Path, changes: dict[str, Any], max_shard_size: str = "5GB") -> LlamaForCausalLM:
    torch.manual_seed(7)
    reference = LlamaForCausalLM(LlamaConfig(**(BASE | changes), attn_implementation="eager")).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "norm" in name or "bias" in name:  # the library starts them at one and zero, which would hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.2)
    reference.save_pretrained(folder, max_shard_size=max_shard_size)
    return reference


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention of one request: q [n, Hq, D], k and v [n, Hkv, D] -> [n, Hq * D]."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("nhd,mhd->hnm", q, k) / q.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("hnm,mhd->nhd", weights, v).flatten(1)


@torch.inference_mode()
def forward(model: LlamaModel, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    x = model.embed(token_ids)
    for layer in range(model.shape.num_layers):
        x = model.post_attention(layer, x, attend(*model.pre_attention(layer, x, positions)))
    return model.logits(x)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("first_position", [0, 201])
def test_logits_equal_transformers(variant: str, first_position: int, tmp_path: Path) -> None:
    reference = make_checkpoint(tmp_path, VARIANTS[variant])
    shape = resolve_shape(str(tmp_path))
    model = load_checkpoint(tmp_path, shape, dtype=torch.float32, device=CPU)
    token_ids = torch.randint(0, 160, (90,), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(90) + first_position

    actual = forward(model, token_ids, positions)

    with torch.inference_mode():
        expected = reference(token_ids[None], position_ids=positions[None], use_cache=False).logits[0]
    assert actual.dtype == torch.float32
    # Measured: 3e-7 to 7e-7 over all variants; 1e-4 is what the engine promises.
    assert relative_error(actual, expected) <= 5e-6


def test_rope_depends_on_distance_only_through_position_ids(tmp_path: Path) -> None:
    """Guards the test above: with random weights a model that ignored positions would show as different logits."""
    make_checkpoint(tmp_path, {})
    model = load_checkpoint(tmp_path, resolve_shape(str(tmp_path)), dtype=torch.float32, device=CPU)
    token_ids = torch.arange(40)
    shifted = forward(model, token_ids, torch.arange(40) + 300)
    stretched = forward(model, token_ids, torch.arange(40) * 3)
    plain = forward(model, token_ids, torch.arange(40))
    assert relative_error(shifted, plain) < 1e-3
    assert relative_error(stretched, plain) > 1e-2


def test_sharded_checkpoint_loads_and_reports_progress(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "one", {"num_key_value_heads": 2})
    make_checkpoint(tmp_path / "many", {"num_key_value_heads": 2}, max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    calls: list[tuple[int, int]] = []
    models = [
        load_checkpoint(
            tmp_path / name,
            resolve_shape(str(tmp_path / name)),
            dtype=torch.float32,
            device=CPU,
            progress=lambda loaded, total: calls.append((loaded, total)),
        )
        for name in ("one", "many")
    ]
    token_ids = torch.arange(20)
    one, many = (forward(model, token_ids, token_ids) for model in models)
    assert torch.equal(one, many)
    loaded, total = calls[-1]
    assert loaded == total == models[0].num_bytes


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.005)])
def test_half_precision_stays_near_float32(dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, VARIANTS["gqa"])
    shape = resolve_shape(str(tmp_path))
    token_ids = torch.arange(60)
    expected = forward(load_checkpoint(tmp_path, shape, dtype=torch.float32, device=CPU), token_ids, token_ids)
    actual = forward(load_checkpoint(tmp_path, shape, dtype=dtype, device=CPU), token_ids, token_ids)
    assert relative_error(actual, expected) <= tolerance


def test_qkv_are_views_of_one_buffer(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, VARIANTS["gqa"])
    model = load_checkpoint(tmp_path, resolve_shape(str(tmp_path)), dtype=torch.float32, device=CPU)
    with torch.inference_mode():
        q, k, v = model.pre_attention(0, model.embed(torch.arange(5)), torch.arange(5))
    assert (q.shape, k.shape, v.shape) == ((5, 4, 16), (5, 2, 16), (5, 2, 16))
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    assert q.stride() == k.stride() == v.stride() == (8 * 16, 16, 1)


class TestBrokenCheckpoints:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        make_checkpoint(tmp_path, {})
        return tmp_path

    def rewrite(self, folder: Path, **changes: torch.Tensor | None) -> None:
        tensors = load_file(folder / "model.safetensors")
        for name, tensor in changes.items():
            if tensor is None:
                del tensors[name]
            else:
                tensors[name] = tensor
        save_file(tensors, folder / "model.safetensors")

    def load(self, folder: Path) -> LlamaModel:
        return load_checkpoint(folder, resolve_shape(str(folder)), dtype=torch.float32, device=CPU)

    def test_missing_tensor_is_named(self, folder: Path) -> None:
        self.rewrite(folder, **{"model.layers.1.mlp.up_proj.weight": None})
        with pytest.raises(ConfigError, match=r"lacks .*model\.layers\.1\.mlp\.up_proj\.weight"):
            self.load(folder)

    def test_unexpected_tensor_is_named(self, folder: Path) -> None:
        self.rewrite(folder, **{"model.layers.0.self_attn.q_norm.weight": torch.ones(16)})
        with pytest.raises(ConfigError, match=r"has not: model\.layers\.0\.self_attn\.q_norm\.weight"):
            self.load(folder)

    def test_misshaped_tensor_is_named_with_both_shapes(self, folder: Path) -> None:
        self.rewrite(folder, **{"lm_head.weight": torch.ones(159, 64)})
        with pytest.raises(ConfigError, match=r"lm_head\.weight is \(159, 64\), not \(160, 64\)"):
            self.load(folder)

    def test_stored_rotary_frequencies_are_ignored(self, folder: Path) -> None:
        self.rewrite(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
        self.load(folder)

    def test_no_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(ConfigError, match=r"no \*\.safetensors"):
            self.load(folder)

    def test_truncated_file(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read"):
            self.load(folder)

    def test_index_that_names_an_absent_file(self, folder: Path) -> None:
        index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ConfigError, match=r"model-00002-of-00002\.safetensors, which is not there"):
            self.load(folder)

    def test_index_that_is_no_index(self, folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text("[]")
        with pytest.raises(ConfigError, match="not a safetensors index"):
            self.load(folder)


SMALL = ModelShape(
    name="small",
    num_layers=4,
    hidden_size=128,
    intermediate_size=256,
    num_query_heads=4,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=1024,
    max_position=256,
)


def greedy(model: LlamaModel, prompt: list[int], count: int) -> list[int]:
    token_ids = list(prompt)
    for _ in range(count):
        token_ids.append(int(forward(model, torch.tensor(token_ids), torch.arange(len(token_ids)))[-1].argmax()))
    return token_ids[len(prompt) :]


class TestRandomModel:
    def test_same_seed_same_weights(self) -> None:
        one, same, other = (random_model(SMALL, seed, dtype=torch.float32, device=CPU) for seed in (3, 3, 4))
        token_ids = torch.arange(8)
        logits = [forward(model, token_ids, token_ids) for model in (one, same, other)]
        assert torch.equal(logits[0], logits[1])
        assert relative_error(logits[2], logits[0]) > 0.5
        assert one.num_bytes == 4 * SMALL.num_parameters

    @pytest.mark.parametrize("tied", [False, True])
    def test_greedy_tokens_vary_and_depend_on_the_whole_context(self, tied: bool) -> None:
        shape = ModelShape(
            **{name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__} | {"tied_embeddings": tied}
        )
        model = random_model(shape, 0, dtype=torch.float32, device=CPU)
        prompt = torch.randint(0, 1024, (40,), generator=torch.Generator().manual_seed(5)).tolist()
        tokens = greedy(model, prompt, 32)
        changed = greedy(model, [*prompt[:2], (prompt[2] + 1) % 1024, *prompt[3:]], 32)
        assert len(set(tokens)) > 20
        assert sum(a == b for a, b in zip(tokens, changed, strict=True)) < 16

    def test_logits_are_spread(self) -> None:
        model = random_model(SMALL, 0, dtype=torch.float32, device=CPU)
        logits = forward(model, torch.arange(30), torch.arange(30))
        assert 3.0 < float(logits.std()) < 5.0

    def test_engine_config_chooses_between_checkpoint_and_random(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_checkpoint(tmp_path, {})
        monkeypatch.chdir(tmp_path.parent)  # a folder's bare name is also the name of its shape
        loaded = build_model(EngineConfig(model=tmp_path.name), device=CPU)
        assert torch.equal(
            loaded.weights.embedding, load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
        )
        random = build_model(EngineConfig(model="tiny", dtype="bfloat16", seed=5), device=CPU)
        assert random.dtype == torch.bfloat16
        assert random.shape.name == "tiny"
