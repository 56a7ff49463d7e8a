"""The miniatures that the tests of pretrained encoders run on are what they stand for."""

from tiny_encoders import save_clip_tokenizer, save_t5_tokenizer


def test_a_known_word_is_one_clip_token_and_any_other_text_falls_into_bytes(tmp_path):
    from transformers import AutoTokenizer

    save_clip_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(["a photo of Seven", "", "é"])["input_ids"]
    words = [tokenizer.convert_ids_to_tokens(row)[1:-1] for row in ids]
    assert words[0] == ["a</w>", "photo</w>", "of</w>", "seven</w>"]
    assert words[1] == []
    assert len(words[2]) == 2
    assert {row[0] for row in ids} == {tokenizer.bos_token_id}
    assert {row[-1] for row in ids} == {tokenizer.pad_token_id}


def test_t5_ends_each_prompt_and_pads_with_zero(tmp_path):
    from transformers import AutoTokenizer

    save_t5_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rows = tokenizer(["seven", "3", ""], padding="max_length", max_length=8)["input_ids"]
    assert tokenizer.decode(rows[0], skip_special_tokens=True) == "seven"
    assert rows[2] == [1, *[0] * 7]
    assert rows[0].index(1) > rows[1].index(1) > 0
