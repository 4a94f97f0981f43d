//! `[[gateway.keys]]`: API keys by their hashes, checked.

use std::time::{Duration, SystemTime};

use crate::spanned::Spanned;
use berth_wire::{Class, KeyHash, KeyId, KeyLimits, KeyRecord, Scope, Timestamp, is_key_name};
use toml::value::{Datetime, Offset};

use crate::problem::{Findings, suggest};
use crate::raw::{RawKey, RawModel};

/// Builds the entries; what is wrong goes to `findings`.
pub(crate) fn resolve(raw: &[RawKey], models: &[RawModel], findings: &mut Findings<'_>) -> Vec<KeyRecord> {
    check_unique(raw, findings);
    raw.iter().map(|raw| entry(raw, models, findings)).collect()
}

fn entry(raw: &RawKey, models: &[RawModel], findings: &mut Findings<'_>) -> KeyRecord {
    let name = raw.name.get_ref();
    if !is_key_name(name) {
        findings.add(
            raw.name.span(),
            "this is no name of a key",
            "use 1 to 64 letters, digits, `-`, `_` and `.`; it is shown in logs and metrics",
        );
    }
    let hash = hash(&raw.hash, findings);
    check_models(raw, models, findings);
    KeyRecord {
        scope: raw.scope.as_ref().map_or(Scope::default(), |scope| *scope.get_ref()),
        class: raw.class.as_ref().map_or(Class::default(), |class| *class.get_ref()),
        limits: KeyLimits {
            concurrency: limit(raw.concurrency.as_ref(), findings),
            requests_per_minute: limit(raw.requests_per_minute.as_ref(), findings),
            tokens_per_minute: limit(raw.tokens_per_minute.as_ref(), findings),
        },
        models: raw.models.as_ref().map(|models| models.get_ref().texts()).unwrap_or_default(),
        expires: raw.expires.as_ref().and_then(|at| expiry(at, findings)),
        ..KeyRecord::new(KeyId::from(name.as_str()), hash)
    }
}

fn hash(raw: &Spanned<String>, findings: &mut Findings<'_>) -> KeyHash {
    raw.get_ref().parse().unwrap_or_else(|_| {
        let (message, help) = if raw.get_ref().starts_with("blake3:") {
            (
                "this is no hash of a key",
                "it is `blake3:` and 64 hexadecimal digits, as `berth key hash` prints it",
            )
        } else {
            (
                "this is not the hash of a key; it may be the key itself, which must not stand here",
                "`berth key hash` reads a key from its input and prints what to write here",
            )
        };
        findings.add_hidden(raw.span(), message, help);
        KeyHash::of("")
    })
}

fn limit(raw: Option<&Spanned<u32>>, findings: &mut Findings<'_>) -> Option<u32> {
    let raw = raw?;
    if *raw.get_ref() == 0 {
        let help = "leave it out for no limit; take the entry out to lock the key out";
        findings.add(raw.span(), "this limit would let nothing through", help);
    }
    Some(*raw.get_ref())
}

/// A file without models is one of a gateway alone: the catalog is elsewhere.
fn check_models(raw: &RawKey, models: &[RawModel], findings: &mut Findings<'_>) {
    let Some(allowed) = &raw.models else { return };
    if allowed.get_ref().0.is_empty() {
        findings.add(
            allowed.span(),
            "a key without a model can ask nothing",
            "leave `models` out for all of them",
        );
    }
    if models.is_empty() {
        return;
    }
    let known: Vec<&str> =
        models.iter().flat_map(RawModel::names).map(|(name, _)| name.get_ref().as_str()).collect();
    for name in &allowed.get_ref().0 {
        if !known.contains(&name.get_ref().as_str()) {
            let message = format!("no model is called `{}`", name.get_ref());
            findings.add(name.span(), message, suggest(name.get_ref(), &known));
        }
    }
}

fn check_unique(raw: &[RawKey], findings: &mut Findings<'_>) {
    for (n, key) in raw.iter().enumerate() {
        let before = raw.get(..n).unwrap_or_default();
        if let Some(first) = before.iter().find(|other| other.name.get_ref() == key.name.get_ref()) {
            let line = findings.line(&first.name.span());
            let message = format!("`{}` is already the name of a key, in line {line}", key.name.get_ref());
            findings.add(key.name.span(), message, "each key has a name of its own");
        }
        if let Some(first) = before.iter().find(|other| other.hash.get_ref() == key.hash.get_ref()) {
            let line = findings.line(&first.hash.span());
            let message = format!("this key is already in line {line}");
            findings.add_hidden(key.hash.span(), &message, "two names for one key could not be told apart");
        }
    }
}

fn expiry(raw: &Spanned<Datetime>, findings: &mut Findings<'_>) -> Option<Timestamp> {
    let at = timestamp(raw.get_ref());
    if at.is_none() {
        findings.add(
            raw.span(),
            "this is no day",
            "write it as in expires = 2027-01-31, or 2027-01-31T18:00:00Z",
        );
    }
    at
}

/// A day begins at midnight, and a time without an offset is meant in UTC.
fn timestamp(at: &Datetime) -> Option<Timestamp> {
    let date = at.date?;
    let time = at.time.map_or_else(|| "00:00:00".to_owned(), |time| time.to_string());
    // TOML leaves seconds out where they are zero.
    let time = if time.matches(':').count() == 1 { format!("{time}:00") } else { time };
    let utc = humantime::parse_rfc3339(&format!("{date}T{time}Z")).ok()?;
    let east = match at.offset {
        Some(Offset::Custom { minutes }) => i64::from(minutes) * 60,
        Some(Offset::Z) | None => 0,
    };
    let shift = Duration::from_secs(east.unsigned_abs());
    let at = if east < 0 { utc.checked_add(shift) } else { utc.checked_sub(shift) };
    at.filter(|at| *at > SystemTime::UNIX_EPOCH).map(Timestamp::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_a_day_or_a_time_anywhere() {
        let at = |text: &str| timestamp(&text.parse().unwrap());
        let midnight = Timestamp(1_801_353_600_000);
        assert_eq!(at("2027-01-31"), Some(midnight));
        assert_eq!(at("2027-01-31T00:00:00"), Some(midnight));
        assert_eq!(at("2027-01-31T01:30:00+01:30"), Some(midnight));
        assert_eq!(at("2027-01-30T19:00:00-05:00"), Some(midnight));
        assert_eq!(at("00:00:00"), None);
    }
}
