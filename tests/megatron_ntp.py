"""Megatron's own next-token pretraining, put together as its documentation shows, with nothing of the objective's code.

Run under torchrun by tests/test_exactness.py: the yardstick for "weights equal to 1 reproduce Megatron's NTP run".
"""

from functools import partial

import torch
from megatron.core.enums import ModelType
from megatron.training import get_args, pretrain
from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args

from megatron_remit.programs.start import parse_arguments
from megatron_remit.scoring.dataset import train_valid_test_datasets


def loss_func(loss_mask, output_tensor):
    mask = loss_mask.view(-1).float()
    loss = torch.sum(output_tensor.view(-1).float() * mask)
    num_tokens = mask.sum().clone().detach().to(torch.int)
    return loss, num_tokens, {"lm loss": torch.stack([loss.clone().detach(), num_tokens.float()])}


def forward_step(data_iterator, model):
    data = next(data_iterator)
    output = model(data["tokens"], data["position_ids"], None, labels=data["labels"])
    return output, partial(loss_func, data["loss_mask"])


if __name__ == "__main__":
    args = parse_arguments()
    assert args.remit_vocab_size == args.padded_vocab_size, "the yardstick has no padding rows to mask"
    assert get_args().calculate_per_token_loss
    container = pretrain_cfg_container_from_args(args, gpt_config_from_args(args))
    pretrain(container, train_valid_test_datasets, ModelType.encoder_or_decoder, forward_step)
