//! Embeddings: a vector that depends on the text alone.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::request::Refusal;

const DIMENSIONS: usize = 64;

/// The answer's `data` and the bytes of all inputs.
pub(super) fn embed(input: Option<&Value>, format: Option<&str>) -> Result<(Vec<Value>, usize), Refusal> {
    let texts = texts(input)?;
    let base64 = match format {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let message = format!("`encoding_format` is `float` or `base64`, not `{other}`");
            return Err(Refusal::bad(message, Some("encoding_format")));
        }
    };
    let bytes = texts.iter().map(String::len).sum();
    let data = texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let vector = vector(text);
            let embedding = if base64 {
                let raw: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Value::from(STANDARD.encode(raw))
            } else {
                Value::from(vector)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    Ok((data, bytes))
}

/// A text, token ids, or a list of either.
fn texts(input: Option<&Value>) -> Result<Vec<String>, Refusal> {
    let bad = || Refusal::bad("`input` must be a text, token ids, or a list of either".into(), Some("input"));
    match input {
        Some(Value::String(text)) => Ok(vec![text.clone()]),
        Some(Value::Array(items)) if items.is_empty() => Err(bad()),
        Some(ids @ Value::Array(items)) if items.iter().all(Value::is_u64) => Ok(vec![ids.to_string()]),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| match item {
                Value::String(text) => Ok(text.clone()),
                Value::Array(ids) if ids.iter().all(Value::is_u64) => Ok(item.to_string()),
                _ => Err(bad()),
            })
            .collect(),
        _ => Err(bad()),
    }
}

/// FNV-1a of the text seeds splitmix64; scaled to length one.
fn vector(text: &str) -> Vec<f32> {
    let mut state = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut raw = Vec::with_capacity(DIMENSIONS);
    for _ in 0..DIMENSIONS {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let small = i16::try_from(z % 2001).unwrap_or_default() - 1000;
        raw.push(f32::from(small) / 1000.0);
    }
    let length = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 { raw.iter().map(|x| x / length).collect() } else { raw }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_has_the_same_vector_in_both_encodings() {
        let input = json!(["a", "b", [1, 2]]);
        let (floats, _) = embed(Some(&input), None).unwrap();
        let (encoded, _) = embed(Some(&input), Some("base64")).unwrap();
        assert_eq!(floats.len(), 3);
        assert_ne!(floats[0]["embedding"], floats[1]["embedding"]);
        let raw = STANDARD.decode(encoded[0]["embedding"].as_str().unwrap()).unwrap();
        let decoded: Vec<f32> =
            raw.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(json!(decoded), floats[0]["embedding"]);
    }

    #[test]
    fn an_input_that_is_no_text_is_refused_by_name() {
        for input in [json!(null), json!([]), json!({"a": 1}), json!([1, "a"])] {
            assert_eq!(embed(Some(&input), None).unwrap_err().param, Some("input"));
        }
    }
}
