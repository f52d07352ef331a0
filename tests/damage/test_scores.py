"""Damage to stored scores."""

import numpy as np

from rlhf_data.scoring.store import ScoreStore


def test_a_flipped_bit_in_a_shard_is_an_error_or_changes_nothing(tmp_path):
    store = ScoreStore(tmp_path, {"model": "a"})
    keys = [f"{k:032x}" for k in range(8)]
    scores = [np.linspace(-1 - k, -0.25, 5, dtype=np.float32) for k in range(8)]
    store.add(keys, scores)
    (shard,) = store.folder.glob("shard-*")
    content = shard.read_bytes()
    noticed = 0
    for place in range(0, len(content), 5):
        shard.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            found = store.token_logps(keys)
        except ValueError as error:
            assert f"{shard.name} is not a readable part of the score store: delete it and score again" in str(error)
            noticed += 1
        else:
            assert all(np.array_equal(one, other) for one, other in zip(found, scores, strict=True))
    assert noticed > 100
