"""The folders that an import reads."""

import json
import shutil
from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM

from tests.rl_folders.edit import (
    EMBEDDING,
    HEAD,
    SINGLE,
    Read,
    added,
    as_dtype,
    both,
    config,
    edit_json,
    renamed,
    sharded,
    tensors,
    write,
    write_index,
)

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
with_head = tensors(lambda found: found | {HEAD: found[EMBEDDING]})


def _in_layers(part):
    """The name with a wrapper's part behind the layer's number."""
    return lambda name: ".".join(f"{piece}.{part}" if piece.isdigit() else piece for piece in name.split("."))


def _compiled(folder: Path) -> None:
    model = torch.compile(AutoModelForCausalLM.from_pretrained(folder))
    tensors(lambda found: model.state_dict())(folder)


def _merged_by_peft(folder: Path, keep_wrapper: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    # A new adapter adds zero: in its wrapper, which transformers does not read, the merged model is the plain one.
    adapter = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=keep_wrapper)
    wrapped = peft.get_peft_model(model, adapter)
    if not keep_wrapper:
        wrapped.merge_and_unload().save_pretrained(folder)
        return
    wrapped.merge_adapter()
    state = {name.replace("base_layer.", ""): value for name, value in wrapped.state_dict().items()}
    tensors(lambda found: {name: value for name, value in state.items() if "lora_" not in name})(folder)


def _stale_index(folder: Path) -> None:
    """A model was saved in two files, and then another one in the same folder as one file."""
    shutil.copy(folder / SINGLE, folder / "kept")
    tensors(lambda found: {name: value + 1 for name, value in found.items()})(folder)
    sharded(folder)
    (folder / "kept").rename(folder / SINGLE)


def _head_in_another_shard(folder: Path) -> None:
    with_head(folder)
    weight_map = sharded(folder)
    assert weight_map[HEAD] != weight_map[EMBEDDING]


def _hub_cache(folder: Path) -> None:
    """The layout of the hub's cache: snapshots of links to blobs."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "5e1f"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for file in [path for path in folder.iterdir() if path.is_file()]:
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")


READ = {
    "saved_by_transformers": Read(lambda folder: None),
    "sharded_by_transformers": Read(sharded),
    "index_that_names_the_single_file": Read(lambda folder: write_index(folder, {EMBEDDING: SINGLE})),
    "torch_dtype_of_older_versions": Read(config(torch_dtype="float32", dtype=...)),
    "no_dtype_in_the_config": Read(config(dtype=...)),
    "rope_theta_in_the_old_place": Read(config(rope_theta=777.0, rope_parameters=...)),
    "rope_scaling_in_the_old_place": Read(config(rope_theta=5e5, rope_scaling=LLAMA3, rope_parameters=...)),
    "fields_at_their_default_left_out": Read(config(hidden_act=..., tie_word_embeddings=..., attention_bias=...)),
    "several_end_of_sequence_ids": Read(
        both(config(eos_token_id=[0, 7]), edit_json("generation_config.json", eos_token_id=[0, 7]))
    ),
    "broken_generation_config": Read(
        added({"generation_config.json": "{"}), note="generation_config.json: not valid JSON"
    ),
    "inconsistent_generation_config": Read(
        added({"generation_config.json": '{"do_sample": false, "temperature": 0.6}'})
    ),
    "buffers_of_older_versions": Read(
        tensors(
            lambda found: (
                found
                | {
                    "model.rotary_emb.inv_freq": torch.ones(4),
                    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
                    "model.layers.0.self_attn.masked_bias": torch.tensor(-1e9),
                }
            )
        )
    ),
    "bf16_weights_with_an_fp32_config": Read(as_dtype(torch.bfloat16)),
    "fp32_weights_with_a_bf16_config": Read(
        config(dtype="bfloat16"), note="the weights are torch.float32 and stay so", dtype=torch.float32
    ),
    "fp32_weights_with_a_bf16_config_and_the_flag": Read(config(dtype="bfloat16"), flag="bf16"),
    "fp16": Read(both(as_dtype(torch.float16), config(dtype="float16"))),
    "bf16_with_fp32_norms_and_the_flag": Read(
        both(as_dtype(torch.bfloat16), as_dtype(torch.float32, "norm"), config(dtype="bfloat16")), flag="bf16"
    ),
    "bf16_with_an_fp32_head_and_the_flag": Read(
        both(as_dtype(torch.bfloat16), as_dtype(torch.float32, HEAD)), flag="fp32", dtype=torch.float32
    ),
    "tied_with_an_equal_head": Read(with_head, "tied", note="lm_head.weight is left out; tie_word_embeddings"),
    "tied_qwen3_with_an_equal_head": Read(with_head, "qwen3", note="lm_head.weight is left out"),
    "tied_by_the_class_default_with_an_equal_head": Read(
        both(with_head, config(tie_word_embeddings=...)), "smollm3", note="lm_head.weight is left out"
    ),
    "tied_with_an_equal_head_in_another_shard": Read(_head_in_another_shard, "tied", note="lm_head.weight is left"),
    "tied_bf16_with_an_equal_fp32_head": Read(
        both(as_dtype(torch.bfloat16), with_head, as_dtype(torch.float32, HEAD)), "tied", note="lm_head.weight is left"
    ),
    "tied_with_the_head_alone": Read(
        renamed(lambda name: HEAD if name == EMBEDDING else name), "tied", note="the tied lm_head.weight is read"
    ),
    "stale_index_of_another_model": Read(_stale_index, note="model.safetensors is read, as transformers does"),
    "no_architectures": Read(config(architectures=...)),
    "architectures_null": Read(config(architectures=None)),
    "architecture_of_fsdp2": Read(config(architectures=["FSDPLlamaForCausalLM"])),
    "base_model_without_a_head": Read(
        both(renamed(lambda name: name.removeprefix("model.")), config(architectures=["LlamaModel"])),
        "tied",
        note="read with model. in front",
    ),
    "names_with_one_model_too_many": Read(renamed(lambda name: f"model.{name}"), note="read without model."),
    "compiled": Read(_compiled, note="read without _orig_mod.", as_plain=True),
    "compiled_by_layer": Read(renamed(_in_layers("_orig_mod")), note="without _orig_mod.", as_plain=True),
    "of_distributed_data_parallel": Read(renamed("module.{}".format), note="without module.", as_plain=True),
    "of_fsdp_with_checkpointed_layers": Read(
        renamed(lambda name: "_fsdp_wrapped_module." + _in_layers("_checkpoint_wrapped_module")(name)),
        note="without _fsdp_wrapped_module. and without _checkpoint_wrapped_module.",
        as_plain=True,
    ),
    "of_peft_merged": Read(lambda folder: _merged_by_peft(folder, keep_wrapper=False)),
    "of_peft_merged_in_its_wrapper": Read(
        lambda folder: _merged_by_peft(folder, keep_wrapper=True), note="without base_model.model.", as_plain=True
    ),
    "compiled_inside_ddp_with_a_tied_head_and_buffers": Read(
        both(
            tensors(lambda found: found | {HEAD: found[EMBEDDING], "model.rotary_emb.inv_freq": torch.ones(4)}),
            renamed("module._orig_mod.{}".format),
        ),
        "tied",
        note="without _orig_mod. and without module.",
        as_plain=True,
    ),
    "adapter_config_left_after_a_merge": Read(
        added({"adapter_config.json": json.dumps({"peft_type": "LORA", "base_model_name_or_path": "base"})}),
        note="adapter_config.json has no adapter weights",
        as_plain=True,
    ),
    "consolidated_file_next_to_the_shards": Read(
        both(lambda folder: shutil.copy(folder / SINGLE, folder / "consolidated.safetensors"), sharded)
    ),
    "original_format_in_a_subfolder": Read(
        lambda folder: write(folder / "original" / "consolidated.00.pth", b"weights of another format")
    ),
    "pickled_weights_next_to_safetensors": Read(lambda folder: write(folder / "pytorch_model.bin", b"older weights")),
    "snapshot_of_the_hub_cache": Read(_hub_cache),
    "state_of_a_trainer": Read(
        added(
            dict.fromkeys(
                (
                    *("trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"),
                    *(
                        "all_results.json",
                        "train_results.json",
                        "README.md",
                        "zero_to_fp32.py",
                        "latest",
                        "global_step5/x",
                    ),
                    *("pytorch_model.bin.index.json", "runs/events", "checkpoint-5/config.json", "requirements.txt"),
                ),
                "{}",
            )
        )
    ),
    "model_type_of_remote_code": Read(
        both(
            config(model_type="own_llama", auto_map={"AutoModelForCausalLM": "modeling_own.LlamaForCausalLM"}),
            added({"modeling_own.py": "raise SystemExit('run')"}),
        ),
        note="auto_map is left out",
        as_plain=True,
    ),
    "code_named_by_auto_map": Read(
        both(
            config(auto_map={"AutoModelForCausalLM": "modeling_own.Own"}),
            edit_json("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.Own", None]}),
            added(dict.fromkeys(("modeling_own.py", "tokenization_own.py"), "raise SystemExit('run')")),
        ),
        note="auto_map is left out",
    ),
    "chat_template_in_a_file": Read(added({"chat_template.jinja": "{{ messages[0].content }}"})),
    "chat_template_in_the_tokenizer_config": Read(edit_json("tokenizer_config.json", chat_template="{{ messages }}")),
    "no_tokenizer": Read(lambda folder: (folder / "tokenizer.json").unlink(), note="holds no tokenizer"),
    "sentencepiece_model_alone": Read(
        lambda folder: (folder / "tokenizer.json").rename(folder / "tokenizer.model"),
    ),
}
