use std::io::Write;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::*;

/// Writes headers as the format has them.
#[derive(Default)]
struct Writer {
    pairs: u64,
    tensors: u64,
    body: Vec<u8>,
    places: Vec<u8>,
}

impl Writer {
    fn pair(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.pairs += 1;
        self.body.extend(text(key));
        self.body.extend(kind.to_le_bytes());
        self.body.extend(value);
        self
    }

    fn number(self, key: &str, number: u32) -> Self {
        self.pair(key, 4, &number.to_le_bytes())
    }

    fn architecture(self, name: &str) -> Self {
        self.pair("general.architecture", 8, &text(name))
    }

    fn words(self, words: &[&str]) -> Self {
        let mut value = 8_u32.to_le_bytes().to_vec();
        value.extend((words.len() as u64).to_le_bytes());
        for word in words {
            value.extend(text(word));
        }
        self.pair("tokenizer.ggml.tokens", 9, &value)
    }

    fn tensor(mut self, name: &str, offset: u64) -> Self {
        self.tensors += 1;
        self.places.extend(text(name));
        self.places.extend(1_u32.to_le_bytes());
        self.places.extend(8_u64.to_le_bytes());
        self.places.extend(0_u32.to_le_bytes());
        self.places.extend(offset.to_le_bytes());
        self
    }

    fn bytes(&self, weights: usize) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(self.tensors.to_le_bytes());
        bytes.extend(self.pairs.to_le_bytes());
        bytes.extend(&self.body);
        bytes.extend(&self.places);
        bytes.resize(bytes.len().next_multiple_of(32) + weights, 0);
        bytes
    }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn llama() -> Writer {
    Writer::default()
        .architecture("llama")
        .number("llama.block_count", 2)
        .number("llama.embedding_length", 64)
        .number("llama.attention.head_count", 2)
        .number("llama.attention.head_count_kv", 1)
        .number("llama.feed_forward_length", 128)
        .number("llama.context_length", 4096)
        .words(&["a", "b", "c"])
        .tensor("token_embd.weight", 0)
        .tensor("output.weight", 32)
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn read(bytes: &[u8]) -> Result<Footprint, FootprintError> {
    of_gguf(file(bytes).path())
}

#[test]
fn a_header_tells_weights_cache_and_context() {
    let model = read(&llama().bytes(64)).unwrap();
    assert_eq!(model.weights, 64);
    assert_eq!(model.cache_per_token, 2 * (32 + 32) * 2);
    assert_eq!((model.vocabulary, model.inner, model.trained_context), (3, 128, Some(4096)));
}

#[test]
fn heads_may_differ_by_layer() {
    let mut heads = 5_u32.to_le_bytes().to_vec();
    heads.extend(2_u64.to_le_bytes());
    heads.extend([2_i32, 0].iter().flat_map(|n| n.to_le_bytes()));
    let writer = Writer::default()
        .architecture("mixed")
        .number("mixed.block_count", 2)
        .number("mixed.embedding_length", 64)
        .number("mixed.attention.head_count", 2)
        .pair("mixed.attention.head_count_kv", 9, &heads);
    assert_eq!(read(&writer.bytes(0)).unwrap().cache_per_token, 2 * 64 * 2);
}

#[test]
fn the_parts_of_a_split_model_are_added_up() {
    let folder = tempfile::tempdir().unwrap();
    let name = |n: u32| folder.path().join(format!("big-{n:05}-of-00002.gguf"));
    let first = llama().number("split.count", 2).bytes(64);
    std::fs::write(name(1), first).unwrap();
    let missing = of_gguf(&name(1)).unwrap_err().to_string();
    assert!(missing.contains("big-00002-of-00002.gguf"), "{missing}");
    std::fs::write(name(2), Writer::default().tensor("x", 0).bytes(100)).unwrap();
    assert_eq!(of_gguf(&name(1)).unwrap().weights, 164);
}

#[test]
fn what_a_hostile_header_claims_is_held_against_the_file() {
    let huge = u64::MAX.to_le_bytes();
    let mut list = 4_u32.to_le_bytes().to_vec();
    list.extend(huge);
    let mut nested = 9_u32.to_le_bytes().to_vec();
    nested.extend(1_u64.to_le_bytes());
    let mut many = llama();
    many.tensors = u64::MAX / 64;
    let mut pairs = llama();
    pairs.pairs = 1 << 40;
    for (bytes, what) in [
        (Writer::default().pair("a", 8, &huge).bytes(0), "a text is 18446744073709551615"),
        (Writer::default().pair("a", 9, &list).bytes(0), "length of a list"),
        (Writer::default().pair("a", 9, &nested).bytes(0), "field a is a list of lists"),
        (Writer::default().pair("a", 99, &[]).bytes(0), "field a has the unknown type 99"),
        (many.bytes(0), "number of tensors"),
        (pairs.bytes(0), "number of metadata fields"),
        (llama().tensor("far", 1 << 40).bytes(64), "a tensor begins 1099511627776 bytes into the weights"),
        (llama().number("split.count", 7).bytes(64), "split.count is 7"),
        (b"GGUF\x03\0\0\0".to_vec(), "ends within its header"),
        (b"GGUF\0\0\0\x03".to_vec(), "version 50331648"),
    ] {
        let error = read(&bytes).unwrap_err().to_string();
        assert!(error.contains(what), "{error} does not say {what}");
    }
    assert!(matches!(read(b"PK\x03\x04"), Err(FootprintError::Other { .. })));
    assert!(matches!(read(b""), Err(FootprintError::Other { .. })));
}

proptest! {
    /// Whatever the bytes are, there is an answer or an error, and no memory taken for what is only claimed.
    #[test]
    fn any_damage_to_a_header_is_an_error_or_a_number(
        hits in prop::collection::vec((0_usize..400, any::<u8>()), 0..8),
        cut in 0_usize..500,
    ) {
        let mut bytes = llama().bytes(64);
        for (place, byte) in hits {
            if let Some(hit) = bytes.get_mut(place) {
                *hit = byte;
            }
        }
        bytes.truncate(cut.max(4));
        if let Ok(model) = read(&bytes) {
            prop_assert!(model.weights <= bytes.len() as u64);
        }
    }
}
