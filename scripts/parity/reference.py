"""What PyTorch says of the same weights: log probabilities in float32, and how far its own 16 bits are from them."""
import dataclasses

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, Qwen2ForCausalLM

QUERY_ROWS = 512
# As many as the server tells of.
TOP = 20


def attention_by_rows(module, query, key, value, attention_mask, scaling, **_):
    """Causal attention in the tensors' own precision, some queries at a time: no fused kernel takes part.

    query [1, heads, len, head_dim]; key, value [1, kv_heads, len, head_dim]. The mask is ours: nothing is padded.
    """
    groups, length = module.num_key_value_groups, query.shape[2]
    rows = []
    for first in range(0, length, QUERY_ROWS):
        last = min(first + QUERY_ROWS, length)
        keys, values = (x[:, :, :last].repeat_interleave(groups, 1) for x in (key, value))
        scores = query[:, :, first:last] @ keys.transpose(2, 3) * scaling
        places = torch.arange(last, device=query.device)
        scores.masked_fill_(places[None] > places[first:last, None], float("-inf"))
        rows.append(scores.softmax(-1) @ values)
    return torch.cat(rows, 2).transpose(1, 2), None


AttentionInterface.register("by_rows", attention_by_rows)


@dataclasses.dataclass(frozen=True)
class Truth:
    """Of the positions an answer's tokens were chosen at: `logprobs` [positions, tokens] in float32, and the error of
    PyTorch's own 16-bit pass over the TOP likeliest of them."""

    logprobs: torch.Tensor
    worst: float
    square: float


class Reference:
    """One model in one 16-bit type."""

    def __init__(self, folder, dtype, tokens, device, plant=None):
        self.device, self.tokens, self.plant = device, tokens, plant
        load = lambda dtype, attention: Qwen2ForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention).to(device).eval()
        self.exact = load(torch.float32, "by_rows")
        self.rounded = load(dtype, "sdpa")
        # The output matrix is applied in float32 for both: our logits are not rounded to 16 bits either.
        self.head = self.exact.lm_head.weight[:tokens]
        if plant == "weight":
            # In both, or the yardstick would grow by what is planted.
            with torch.no_grad():
                for model in (self.exact, self.rounded):
                    model.model.norm.weight[7] *= -3
        self.known = {}

    @torch.inference_mode()
    def of(self, prompt, answer):
        """The truth about `answer`, token by token, each behind the tokens we chose before it."""
        key = (tuple(prompt), tuple(answer))
        if key not in self.known:
            self.known[key] = self._compute([*prompt, *answer[:-1]], len(answer))
        return self.known[key]

    def _compute(self, ids, positions):
        read = torch.tensor([ids], device=self.device)
        if self.plant == "tokens":
            middle = len(ids) // 3
            read[0, middle : middle + 16] += 1
        exact, rounded = (self._logprobs(model, read, positions) for model in (self.exact, self.rounded))
        top = exact.topk(TOP, -1).indices
        error = (rounded.gather(1, top) - exact.gather(1, top)).abs()
        return Truth(exact, error.max().item(), error.square().mean().item())

    def _logprobs(self, model, ids, positions):
        hidden = model.model(ids, use_cache=False).last_hidden_state[0, -positions:]
        return F.log_softmax(hidden.float() @ self.head.T, -1)
