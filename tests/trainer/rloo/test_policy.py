"""The packed forward of the policy against plain transformers at batch size one."""

import pytest
import torch

from reward_model.errors import CheckpointError
from tests.checkpoints import tiny_checkpoint, tiny_model
from trainer.rloo import policy as policy_module
from trainer.rloo.policy import Policy, load_policy

PROMPTS = [tuple(range(5, 145)), tuple(range(5, 145)), tuple(range(30, 37))]
RESPONSES = [tuple(range(40, 120)), (7, 8, 2), (9,)]
TEMPERATURE = 0.7


def plain_logprobs(model, prompt, response):
    model.set_attn_implementation("eager")  # others leave out the soft cap of Gemma 2
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    log_softmax = torch.log_softmax(logits / TEMPERATURE, -1)
    entropy = -(log_softmax.exp() * log_softmax).sum(-1)
    return log_softmax.gather(1, torch.tensor(response)[:, None])[:, 0], entropy


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gemma2"])
def test_equals_plain_transformers(architecture):
    expected = [
        plain_logprobs(tiny_model(architecture, "causal"), prompt, response)
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
    ]
    tokens = Policy(tiny_model(architecture, "causal"), TEMPERATURE)(PROMPTS, RESPONSES)
    for n, (logprobs, entropy) in enumerate(expected):
        of_sample = tokens.sample_R == n
        torch.testing.assert_close(tokens.logprobs_R[of_sample], logprobs, atol=2e-5, rtol=0)
        torch.testing.assert_close(tokens.entropy_R[of_sample], entropy, atol=2e-5, rtol=0)


def test_the_prompt_of_a_group_is_computed_once():
    policy = Policy(tiny_model("qwen2", "causal"), 1.0)
    prompt = tuple(range(5, 5 + 128))
    alone = policy([prompt], [(7, 8)]).computed_tokens
    group = policy([prompt] * 4, [(7, 8), (9, 10), (11, 12), (13, 14)]).computed_tokens
    assert group == alone + 3 * 2


def test_chunks_of_the_output_matrix_change_neither_values_nor_gradients(monkeypatch):
    def run():
        policy = Policy(tiny_model("qwen2", "causal"), 1.0)
        tokens = policy(PROMPTS, RESPONSES)
        tokens.logprobs_R.sum().backward()
        return tokens.logprobs_R.detach(), policy.model.get_output_embeddings().weight.grad

    whole = run()
    monkeypatch.setattr(policy_module, "MAX_LOGITS", 400 * 7)
    for one, other in zip(whole, run(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_tied_embeddings_are_taken_apart(tmp_path):
    tiny_checkpoint(tmp_path / "tied", "qwen2", "causal", tie_word_embeddings=True)
    model, _ = load_policy(str(tmp_path / "tied"))
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert torch.equal(inputs, outputs)
    assert inputs.data_ptr() != outputs.data_ptr()
    assert model.config.tie_word_embeddings is False


def test_a_directory_without_a_policy_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_policy(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_policy(str(tmp_path / "absent"))
    tiny_checkpoint(tmp_path / "backbone", "qwen2", "reward")
    with pytest.raises(CheckpointError, match="lm_head"):
        load_policy(str(tmp_path / "backbone"))
