//! Any text as one subject token, reversibly: `[A-Za-z0-9-]` stay, every other byte becomes `_` and two hex digits.
//!
//! NATS tokens must not hold `.`, `*`, `>` or white space, and KV keys allow little more than `[-_A-Za-z0-9]`;
//! model ids hold `/`, `.` and `:`.

use std::fmt::Write;

/// The token for `text`. Empty text gives `_`, which no other text does.
#[must_use]
pub fn encode(text: &str) -> String {
    if text.is_empty() {
        return "_".into();
    }
    let mut token = String::with_capacity(text.len() + 8);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            token.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(token, "_{byte:02x}");
        }
    }
    token
}

/// The text that `encode` made `token` of; `None` if it made no such token.
#[must_use]
pub fn decode(token: &str) -> Option<String> {
    if token == "_" {
        return Some(String::new());
    }
    if token.is_empty() {
        return None;
    }
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'_' => {
                let high = char::from(rest.next()?).to_digit(16)?;
                let low = char::from(rest.next()?).to_digit(16)?;
                bytes.push(u8::try_from(high * 16 + low).ok()?);
            }
            b'-' => bytes.push(byte),
            _ if byte.is_ascii_alphanumeric() => bytes.push(byte),
            _ => return None,
        }
    }
    String::from_utf8(bytes).ok()
}

/// Whether `text` may stand as a subject token as it is (host and gateway names).
#[must_use]
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_text_survives_the_round_trip_as_one_token(text in ".*") {
            let token = encode(&text);
            prop_assert!(is_token(&token));
            prop_assert_eq!(decode(&token), Some(text));
        }

        #[test]
        fn decoding_never_panics(token in ".*") {
            let _ = decode(&token);
        }
    }

    #[test]
    fn a_model_id_stays_readable() {
        assert_eq!(encode("qwen2.5-7b"), "qwen2_2e5-7b");
        assert_eq!(encode("org/model:tag"), "org_2fmodel_3atag");
    }
}
