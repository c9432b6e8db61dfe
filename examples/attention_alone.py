"""Decode with one attention layer and its cache, and count the bytes against multi-head attention.

From the checkout: python -m examples.attention_alone
"""

import torch

from modeling.attention import GroupedQueryAttentionConfig, LatentAttentionConfig

HIDDEN, HEADS, PROMPT, TOKENS = 256, 8, 96, 128

MLA = LatentAttentionConfig(
    hidden_size=HIDDEN,
    num_attention_heads=HEADS,
    kv_lora_rank=128,  # what is cached of a token: this latent,
    qk_rope_head_dim=16,  # and one rotated key that all heads share
    qk_nope_head_dim=32,
    v_head_dim=32,
)
MHA = GroupedQueryAttentionConfig(
    hidden_size=HIDDEN,
    num_attention_heads=HEADS,
    num_key_value_heads=HEADS,  # fewer are GQA, one is MQA
    head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=32,
)


@torch.no_grad()
def bytes_per_token(config):
    """Decode a random sequence, compare it with the full pass, and measure the cache."""
    torch.manual_seed(0)
    attention = config.build().eval()
    x = torch.randn(1, TOKENS, HIDDEN)
    cache = attention.new_cache(batch_size=1, max_length=TOKENS)
    # The prompt at once, then token by token.
    outputs = [attention(x[:, :PROMPT], torch.arange(PROMPT), cache)]
    for position in range(PROMPT, TOKENS):
        token = x[:, position : position + 1]
        outputs.append(attention(token, torch.tensor([position]), cache))
    whole = attention(x, torch.arange(TOKENS))  # all at once, without a cache
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, rtol=1e-4, atol=1e-5)
    return cache.num_bytes() / TOKENS


if __name__ == "__main__":
    mla, mha = bytes_per_token(MLA), bytes_per_token(MHA)
    print(f"a token in the cache: MLA {mla:,.0f} bytes, MHA {mha:,.0f}, {mha / mla:.1f} x as many")
