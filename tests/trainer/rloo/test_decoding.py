"""Decoding by groups and with a roomy cache, against transformers' own attention and cache."""

import pytest
import torch
from transformers import DynamicCache

from tests.checkpoints import DECODERS, tiny_model
from trainer.rloo.decoding import ATTENTION, ROOM, RoomyCache, RoomyLayer, decode_grouped

LENGTHS = (60, 3, 30)


def decode(model, cache, steps):
    """Logits of the prompts' last tokens and of ``steps`` further ones; two rows stay after ten."""
    generator = torch.Generator().manual_seed(1)
    longest = max(LENGTHS)
    ids = torch.randint(5, 300, (len(LENGTHS), longest + steps), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate(LENGTHS):
        mask[row, : longest - length] = 0
    found = []
    for step in range(steps + 1):
        if step == 10:
            kept = torch.tensor([2, 0])
            cache.batch_select_indices(kept)
            ids, mask = ids[kept], mask[kept]
        end = longest + step
        place = mask[:, :end].cumsum(1).sub(1).clamp(min=0)
        new = slice(0, end) if step == 0 else slice(end - 1, end)
        with torch.inference_mode():
            output = model(
                input_ids=ids[:, new],
                attention_mask=mask[:, :end],
                position_ids=place[:, new],
                past_key_values=cache,
                use_cache=True,
            )
        found.append(output.logits[:, -1])
    return found


@pytest.mark.parametrize("architecture", DECODERS)
def test_logits_are_those_of_sdpa_and_a_dynamic_cache(architecture):
    model = tiny_model(architecture, "causal", seed=0).eval()
    steps = ROOM + 20
    expected = decode(model, DynamicCache(config=model.config), steps)
    decode_grouped(model)
    cache = RoomyCache(model.config)
    found = decode(model, cache, steps)
    scale = max(float(logits.abs().max()) for logits in expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * scale)
    assert cache.get_seq_length() == max(LENGTHS) + steps


def test_a_model_that_attends_in_another_way_is_left_alone():
    model = tiny_model("qwen2", "causal", seed=0)
    model.set_attn_implementation("eager")
    decode_grouped(model)
    assert model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    decode_grouped(model)
    assert model.config._attn_implementation == ATTENTION


def test_a_token_is_written_behind_the_others_while_there_is_room():
    layer = RoomyLayer()
    keys, values = torch.rand(2, 3, 2, 5, 4)
    layer.update(keys, values)
    place = layer.keys.data_ptr()
    for _ in range(ROOM):
        layer.update(keys[:, :, :1], values[:, :, :1])
    assert layer.keys.data_ptr() == place
    kept = layer.keys
    layer.update(keys[:, :, :1] + 1, values[:, :, :1])
    assert layer.keys.data_ptr() != place
    assert torch.equal(layer.keys[:, :, :-1], kept)
    assert torch.equal(layer.keys[:, :, -1], keys[:, :, 0] + 1)


def test_rows_that_were_selected_no_longer_write_where_the_others_stand():
    layer = RoomyLayer()
    keys, values = torch.rand(2, 3, 2, 5, 4)
    layer.update(keys, values)
    before = layer.keys.clone()
    everything = layer.keys
    layer.batch_select_indices(torch.tensor([1]))
    layer.update(keys[:1, :, :1], values[:1, :, :1])
    assert torch.equal(everything, before)
    assert torch.equal(layer.keys, torch.cat([keys[1:2], keys[:1, :, :1]], 2))
    assert torch.equal(layer.values, torch.cat([values[1:2], values[:1, :, :1]], 2))


def test_a_layer_that_was_reset_or_reordered_begins_anew():
    layer = RoomyLayer()
    keys, values = torch.rand(2, 3, 2, 5, 4)
    layer.update(keys, values)
    layer.reorder_cache(torch.tensor([2, 1, 0]))
    layer.update(keys[:, :, :1], values[:, :, :1])
    assert torch.equal(layer.keys, torch.cat([keys.flip(0), keys[:, :, :1]], 2))
    layer.reset()
    layer.update(keys[:2], values[:2])
    assert torch.equal(layer.keys, keys[:2])
