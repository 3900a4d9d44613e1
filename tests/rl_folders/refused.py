"""The folders that an import refuses, with the words of the message: what is there, and what to do or to run."""

import json
from pathlib import Path

import peft
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.rl_folders.edit import (
    EMBEDDING,
    HEAD,
    SINGLE,
    Refused,
    as_dtype,
    both,
    config,
    renamed,
    sharded,
    tensors,
    write,
    write_index,
)

MERGE = r"merge_and_unload\(\)\.save_pretrained"
RESAVE = r'M\.from_pretrained\(".*", dtype="auto"\)\.save_pretrained\(".*-safetensors"\)'


def without_weights(*files: str):
    """Remove the weights, and put empty files in their place."""

    def change(folder: Path) -> None:
        (folder / SINGLE).unlink()
        for file in files:
            write(folder / file)

    return change


def with_adapter(folder: Path, whole: bool) -> None:
    """What peft saves of an adapter: its own folder, or next to the whole model."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    adapter = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    base = folder.with_name("base")
    model.save_pretrained(base)
    model.config.name_or_path = str(base)
    peft.get_peft_model(model, adapter).save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))
    if not whole:
        (folder / SINGLE).unlink()
        (folder / "config.json").unlink()


def _not_merged(folder: Path) -> None:
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), peft.LoraConfig(r=2, target_modules=["q_proj"])
    )
    save_file({name: value.clone() for name, value in model.state_dict().items()}, folder / SINGLE)


def pickled(folder: Path) -> None:
    """The folder as torch.save writes a model."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def with_value_head(folder: Path) -> None:
    tensors(lambda found: found | {"v_head.summary.weight": torch.zeros(1, 32), "v_head.summary.bias": torch.zeros(1)})(
        folder
    )


def _index_with(file):
    def change(folder: Path) -> None:
        write_index(folder, sharded(folder) | {EMBEDDING: file})

    return change


def _in_two_shards(folder: Path) -> None:
    sharded(folder)
    save_file({EMBEDDING: torch.zeros(260, 32)}, folder / "model-00003-of-00003.safetensors")
    content = json.loads((folder / f"{SINGLE}.index.json").read_text())["weight_map"]
    write_index(folder, content | {"model.norm.weight": "model-00003-of-00003.safetensors"})


def _link_out(folder: Path) -> None:
    write(folder.with_name("secret"), "a password")
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    (folder / "special_tokens_map.json").symlink_to("../secret")


def _set(name: str, value: float):
    return tensors(lambda found: found[name].view(-1)[3:5].fill_(value) is None)


REFUSED = {
    "tied_with_another_head": Refused(
        tensors(lambda found: found | {HEAD: found[EMBEDDING] + 1}),
        "lm_head.weight .* differs from model.embed_tokens.weight .*, but tie_word_embeddings is true",
        "tied",
    ),
    "tied_by_the_class_default_with_another_head": Refused(
        both(tensors(lambda found: found | {HEAD: found[EMBEDDING] * 2}), config(tie_word_embeddings=...)),
        "tie_word_embeddings is true in config.json .or by its class's default",
        "smollm3",
    ),
    "untied_without_a_head": Refused(
        tensors(lambda found: found.pop(HEAD) is None), "lm_head.weight .* is missing.*tie_word_embeddings"
    ),
    "lora_adapter": Refused(lambda folder: with_adapter(folder, whole=False), f"a LoRA adapter .* of .*base.*{MERGE}"),
    "lora_adapter_next_to_the_model": Refused(
        lambda folder: with_adapter(folder, whole=True), f"{MERGE}.*if the weights next to it hold it already"
    ),
    "lora_not_merged": Refused(_not_merged, f"q_proj.base_layer.weight belongs to a LoRA model.*{MERGE}"),
    "value_head_of_ppo": Refused(with_value_head, f"v_head.summary.bias is a value head.*{RESAVE}"),
    "reward_model": Refused(
        both(tensors(lambda found: found | {"score.weight": torch.zeros(1, 32)}), config(architectures=None)),
        "score.weight is the head of a reward model",
        "tied",
    ),
    "architecture_of_a_reward_model": Refused(
        config(architectures=["LlamaForSequenceClassification"]),
        "LlamaForSequenceClassification.*scores texts.*this program knows",
    ),
    "model_type_of_another_class": Refused(
        config(model_type="smollm3"), "LlamaForCausalLM.*'smollm3' as SmolLM3ForCausalLM"
    ),
    "multimodal": Refused(config(text_config={"model_type": "llama"}), "text_config.*multimodal"),
    "quantized_by_bitsandbytes": Refused(
        config(quantization_config={"quant_method": "bitsandbytes"}), "quantized .bitsandbytes.; give the model before"
    ),
    "quantized_without_saying_so": Refused(
        tensors(lambda found: found | {"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1)}),
        "weight_scale_inv belongs to quantized weights",
    ),
    "float8": Refused(as_dtype(torch.float8_e4m3fn), "tensors of dtype F8_E4M3, such as .*; save the model in one of"),
    "float8_with_the_flag": Refused(as_dtype(torch.float8_e4m3fn), "tensors of dtype F8_E4M3", flag="bf16"),
    "bf16_with_fp32_norms": Refused(
        both(as_dtype(torch.bfloat16), as_dtype(torch.float32, "norm")),
        r"several dtypes: BF16 \(9, such as .*\), F32 \(3, such as .*norm.*--dtype fp32 or bf16 or fp16",
    ),
    "values_beyond_fp16": Refused(_set(EMBEDDING, 1e6), "embed_tokens.weight has values beyond --dtype's", flag="fp16"),
    "nan": Refused(_set("model.norm.weight", float("nan")), "model.norm.weight holds NaN or infinity in 2 of 32"),
    "infinity": Refused(_set(EMBEDDING, float("-inf")), "embed_tokens.weight holds NaN or infinity in 2 of 8320"),
    "pickled": Refused(pickled, f"pytorch_model.bin holds pickled weights.*{RESAVE}"),
    "pickled_in_shards": Refused(
        without_weights("pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"), f"pickled.*{RESAVE}"
    ),
    "gguf": Refused(without_weights("model-Q8_0.gguf"), 'Q8_0.gguf is a GGUF file.*gguf_file="model-Q8_0.gguf"'),
    "shards_of_fsdp": Refused(
        without_weights("pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata"),
        "accelerate merge-weights .*/pytorch_model_fsdp_0 ",
    ),
    "shards_of_torch": Refused(without_weights("__0_0.distcp", ".metadata"), "sharded checkpoint of FSDP"),
    "shards_of_deepspeed": Refused(
        without_weights("zero_to_fp32.py", "latest", "global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        "DeepSpeed checkpoint.*python .*/zero_to_fp32.py .*/hf .*/hf-safetensors --safe_serialization",
    ),
    "empty_tensors_of_deepspeed": Refused(
        tensors(lambda found: {name: torch.zeros(0) for name in found}), r"has shape \[0\].*ZeRO stage 3"
    ),
    "shards_of_verl": Refused(
        without_weights("model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt", "huggingface/config.json"),
        "verl.*python -m verl.model_merger merge --backend fsdp --local_dir .*/hf --target_dir",
    ),
    "actor_of_verl": Refused(
        lambda folder: (
            [path.unlink() for path in folder.iterdir()] and write(folder / "actor" / "model_world_size_2_rank_0.pt")
        ),
        "config.json: no such file.*verl.*--local_dir .*/hf/actor",
    ),
    "checkpoints_of_a_trainer": Refused(
        without_weights("checkpoint-100/config.json", "checkpoint-200/config.json"), "checkpoint-100, checkpoint-200"
    ),
    "megatron_checkpoint": Refused(
        lambda folder: (
            [path.unlink() for path in folder.iterdir()] and write(folder / "latest_checkpointed_iteration.txt", "5")
        ),
        "config.json: no such file.*is a Megatron checkpoint; pass it to --load",
    ),
    "consolidated_weights_alone": Refused(
        without_weights("consolidated.00.pth"), "consolidated.00.pth is in the forma"
    ),
    "variant_of_another_name": Refused(
        lambda folder: (folder / SINGLE).rename(folder / "model.fp16.safetensors"), "rename the file to model.safetens"
    ),
    "shards_without_an_index": Refused(
        lambda folder: sharded(folder) and (folder / f"{SINGLE}.index.json").unlink(), "index.json.* is missing"
    ),
    "missing_shard": Refused(
        lambda folder: sharded(folder) and (folder / "model-00002-of-00002.safetensors").unlink(),
        "model-00002-of-00002.safetensors: no such file",
    ),
    "index_of_sizes_only": Refused(lambda folder: sharded(folder) and write_index(folder, None), "has no weight_map"),
    "index_that_leads_out": Refused(_index_with("../x.safetensors"), "'../x.safetensors' for .*inside"),
    "index_with_an_absolute_path": Refused(_index_with("/x.safetensors"), "'/x.safetensors' for .*inside"),
    "index_with_a_number": Refused(_index_with(7), "weight_map has 7 for model.embed_tokens.weight"),
    "tensor_in_two_shards": Refused(_in_two_shards, "embed_tokens.weight is also in model-0000"),
    "tensor_under_two_names": Refused(
        tensors(lambda found: found | {"norm.weight": found["model.norm.weight"]}), "are both there for the tensor mod"
    ),
    "prefix_on_some_tensors_only": Refused(
        renamed(lambda name: name if "norm" in name else f"module.{name}"),
        "model.embed_tokens.weight .* is missing, though module.model.embed_tokens.weight is there",
    ),
    "broken_tokenizer_config": Refused(
        lambda folder: write(folder / "tokenizer_config.json", "{"), "tokenizer_config.json: not valid JSON"
    ),
    "link_to_itself": Refused(
        lambda folder: (folder / "tokenizer.model").symlink_to("tokenizer.model") or (folder / SINGLE).unlink(),
        "neither model.safetensors",
    ),
    "folder_of_deepspeed_named_as_a_file": Refused(
        both(without_weights("zero_to_fp32.py"), lambda folder: (folder / "pytorch_model.bin").mkdir()),
        "DeepSpeed checkpoint.*--safe_serialization",
    ),
    "distributed_shards_of_transformers": Refused(
        lambda folder: write(folder / "shard-00000-model-00001-of-00001.safetensors"), "in place of model.safetensors"
    ),
    "weights_named_by_the_config": Refused(config(transformers_weights="x.safetensors"), "transformers_weights"),
    "side_file_that_is_a_link_out": Refused(_link_out, "special_tokens_map.json leads out of the folder"),
}
