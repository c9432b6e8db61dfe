"""Small models of transformers in folders, as somebody else would leave them."""

import torch

from data.tokenizing.tokenizer import END_OF_TEXT, bytes_tokenizer, save_tokenizer

VOCAB = 257  # of the tokenizer of bytes
HEADS = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32}


def llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
    return _built(LlamaForCausalLM, LlamaConfig, HEADS | sizes, changes)


def deepseek(**changes):
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    sizes = {
        **{"hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 4},
        **{"q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8},
        **{"v_head_dim": 8, "first_k_dense_replace": 2, "num_nextn_predict_layers": 0},
    }
    return _built(DeepseekV3ForCausalLM, DeepseekV3Config, HEADS | sizes, changes)


def gpt2(**changes):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    return _built(GPT2LMHeadModel, GPT2Config, sizes, changes)


def gpt_neo(**changes):
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    sizes = {
        **{"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 32},
        **{"attention_types": [[["global", "local"], 1]], "window_size": 8},
    }
    return _built(GPTNeoForCausalLM, GPTNeoConfig, sizes, changes)


def smollm3(**changes):
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2}
    return _built(SmolLM3ForCausalLM, SmolLM3Config, HEADS | sizes | {"pad_token_id": 0}, changes)


def mistral(**changes):
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
    return _built(MistralForCausalLM, MistralConfig, HEADS | sizes | {"sliding_window": 6}, changes)


def mamba(**changes):
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    return _built(MambaForCausalLM, MambaConfig, sizes, changes)


def _built(model, config, sizes, changes):
    """One with weights so large that a shift by a token is seen."""
    common = {"vocab_size": VOCAB, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    return model(config(**(common | sizes | changes))).eval()


def saved(model, folder, tokenizer=None):
    """Leave a model in a folder, with the tokenizer of bytes if no other is given."""
    model.save_pretrained(folder)
    save_tokenizer(tokenizer or bytes_tokenizer(), END_OF_TEXT, folder)
    return folder
