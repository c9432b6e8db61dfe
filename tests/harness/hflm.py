"""lm-evaluation-harness on a model of kvlab's; slow to import."""

from types import SimpleNamespace

import datasets
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import PretrainedConfig


class Pretrained:
    """As much of transformers' models as HFLM uses."""

    device = torch.device("cpu")
    config = PretrainedConfig()

    def __init__(self, gpt):
        self.gpt = gpt

    def __call__(self, tokens):
        return SimpleNamespace(logits=self.gpt(tokens))


class OneDocument(HFLM):
    """The harness's `--model hf`, on the stream of a split of one document.

    The harness scores all of a text, after a prefix token; kvlab all of a stream but its first
    token, and a token ends the document. So the first token is the prefix, what follows the text.
    """

    def tok_encode(self, string, **kwargs):
        first, *others = super().tok_encode(string, **kwargs)
        assert first == self.prefix_token_id
        return [*others, self.eot_token_id]


def harness_scores(gpt, tokenizer_folder, first_token, text, context):
    """Return the log-likelihood that the harness gives a text, and the metrics it makes of it."""
    scorer = OneDocument(
        Pretrained(gpt),
        backend="causal",
        tokenizer=str(tokenizer_folder),
        prefix_token_id=first_token,
        max_length=context,
        batch_size=4,
        softmax_dtype="float64",
    )
    task = ConfigurableTask(
        config={
            "task": "text",
            "output_type": "loglikelihood_rolling",
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list([{"text": text}])},
            "test_split": "test",
            "doc_to_text": "",
            "doc_to_target": lambda document: document["text"],
        }
    )
    found = evaluate(scorer, {"tasks": {"text": task}}, bootstrap_iters=0)
    ((log_likelihood,),) = found["samples"]["text"][0]["resps"]
    return log_likelihood, found["results"]["text"]
