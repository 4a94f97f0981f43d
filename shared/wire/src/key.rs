//! API keys as they are kept: a name, a hash and what the key may do. The key itself is nowhere.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::Message;
use crate::id::{IdError, KeyId};
use crate::job::Class;
use crate::slug;
use crate::time::Timestamp;

/// What keys made by Berth begin with.
pub const KEY_PREFIX: &str = "berth-";
/// Longest name of a key, in bytes.
pub const KEY_NAME_MAX: usize = 64;

const HASH_PREFIX: &str = "blake3:";

/// The BLAKE3 hash of a key. Comparing two takes the same time wherever they differ.
///
/// `Debug` and `Display` show its beginning only, enough to tell two keys apart; [`KeyHash::to_text`] gives it whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(blake3::Hash);

impl KeyHash {
    /// The hash of a key as a client sends it.
    #[must_use]
    pub fn of(key: &str) -> Self {
        Self(blake3::hash(key.as_bytes()))
    }

    /// As it is kept: `blake3:` and 64 hexadecimal digits.
    #[must_use]
    pub fn to_text(self) -> String {
        format!("{HASH_PREFIX}{}", self.0.to_hex())
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let begin: String = self.0.to_hex().chars().take(8).collect();
        write!(f, "{HASH_PREFIX}{begin}...")
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyHash {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let hex = text.strip_prefix(HASH_PREFIX).filter(|hex| hex.len() == 64);
        let hash = hex.and_then(|hex| blake3::Hash::from_hex(hex).ok());
        // What was given instead may be the key itself.
        hash.map(Self).ok_or_else(|| IdError::hidden("key hash", "`blake3:` and 64 hexadecimal digits"))
    }
}

impl Serialize for KeyHash {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.to_text())
    }
}

impl<'de> Deserialize<'de> for KeyHash {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a key opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Asking models, and leases and jobs of its own.
    #[default]
    User,
    /// Everything.
    Admin,
}

impl Scope {
    /// The name in configuration and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
        }
    }
}

/// How much a key may use at one gateway; `None`: as much as there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KeyLimits {
    /// Requests that may wait or run at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Requests within a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Tokens, of prompts and answers, within a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u32>,
}

/// `berth_keys/<name>`: one API key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Its name, in logs, metrics and tables.
    pub name: KeyId,
    /// What the key hashes to.
    pub hash: KeyHash,
    /// What it opens.
    #[serde(default)]
    pub scope: Scope,
    /// The class of its requests; one may ask for less, none for more.
    #[serde(default)]
    pub class: Class,
    /// How much it may use.
    #[serde(flatten)]
    pub limits: KeyLimits,
    /// The models that it may name, by id or alias; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// When it was made, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// From when on it opens nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

impl KeyRecord {
    /// A user's key without limits.
    #[must_use]
    pub fn new(name: KeyId, hash: KeyHash) -> Self {
        Self {
            name,
            hash,
            scope: Scope::default(),
            class: Class::default(),
            limits: KeyLimits::default(),
            models: Vec::new(),
            created: None,
            expires: None,
        }
    }

    /// Its key in the bucket.
    #[must_use]
    pub fn key_of(name: &KeyId) -> String {
        slug::encode(name.as_str())
    }

    /// Whether it opens nothing any more.
    #[must_use]
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// Whether it may name the model of this id and these aliases.
    #[must_use]
    pub fn allows(&self, id: &str, aliases: &[String]) -> bool {
        self.models.is_empty() || self.models.iter().any(|name| name == id || aliases.contains(name))
    }
}

impl Message for KeyRecord {
    const SCHEMA: &'static str = "kv.key/1";
}

/// Whether `text` may name a key: 1 to 64 letters, digits, `-`, `_` and `.`. Names stand in logs and metrics.
#[must_use]
pub fn is_key_name(text: &str) -> bool {
    (1..=KEY_NAME_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_reads_back_and_shows_only_its_beginning() {
        let hash = KeyHash::of("berth-secret");
        assert_eq!(hash.to_text().parse::<KeyHash>().unwrap(), hash);
        let shown = format!("{hash} {hash:?}");
        assert_eq!(shown.len(), 2 * "blake3:01234567...".len() + 1, "{shown}");
        assert!(hash.to_text().starts_with(shown.split('.').next().unwrap()), "{shown}");
    }

    #[test]
    fn what_is_no_hash_is_refused_without_being_quoted() {
        for text in
            ["berth-secret", "blake3:secret", "", &"f".repeat(64), &format!("blake3:{}", "g".repeat(64))]
        {
            let error = text.parse::<KeyHash>().unwrap_err().to_string();
            assert!(!error.contains("secret") && error.contains("64 hexadecimal"), "{error}");
        }
    }

    #[test]
    fn models_are_allowed_by_id_or_alias_and_an_empty_list_allows_all() {
        let mut key = KeyRecord::new("k".into(), KeyHash::of("x"));
        assert!(key.allows("m", &[]));
        key.models = vec!["fast".into()];
        assert!(key.allows("m", &["fast".into()]) && key.allows("fast", &[]) && !key.allows("m", &[]));
    }

    #[test]
    fn names_stand_in_metrics_as_they_are() {
        assert!(
            is_key_name("ci.build-1_a") && !is_key_name("") && !is_key_name("a b") && !is_key_name("a\"b")
        );
        assert!(is_key_name(&"x".repeat(64)) && !is_key_name(&"x".repeat(65)));
    }
}
