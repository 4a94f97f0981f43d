//! `keep_context` of a model: whether its sessions' contexts outlast a stop of its engine, and for how long.

use std::fmt;
use std::time::Duration;

use berth_wire::{Driver, EngineKind};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

use crate::problem::Findings;
use crate::raw::RawModel;
use crate::template::is_flag;
use crate::value::Span;

/// A day: what is older nobody comes back to.
pub(crate) const MOST: Duration = Duration::from_secs(24 * 60 * 60);

/// A time, or `"off"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keep(Option<Duration>);

impl<'de> Deserialize<'de> for Keep {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Keep;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"1h\", or \"off\"")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Keep, E> {
                match text.trim() {
                    "off" => Ok(Keep(None)),
                    text => Span::parse(text).map(|span| Keep(Some(span.0))),
                }
            }
        }
        d.deserialize_any(Text)
    }
}

/// Whose contexts are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Kept {
    /// Every session's, for so long.
    pub(crate) of_all: Option<Duration>,
    /// A lease may ask for it.
    pub(crate) by_lease: bool,
}

/// Reads it; what is wrong goes to `findings`.
pub(crate) fn resolve(raw: &RawModel, kind: EngineKind, driver: Driver, findings: &mut Findings<'_>) -> Kept {
    let can = kind == EngineKind::LlamaCpp && driver != Driver::External;
    let command = raw.command.iter().flat_map(|words| &words.get_ref().0);
    let mut own = command.chain(&raw.args.0).filter(|word| is_flag(word.get_ref(), &["--slot-save-path"]));
    let Some(said) = &raw.keep_context else {
        return Kept { of_all: None, by_lease: can && raw.adapters.is_empty() && own.next().is_none() };
    };
    let Some(age) = said.get_ref().0 else { return Kept::default() };
    let wrong = if !can {
        Some(("only contexts of llama.cpp can be kept", "leave `keep_context` out"))
    } else if !raw.adapters.is_empty() {
        Some(("contexts of a model with adapters cannot be kept", "leave `keep_context` or the adapters out"))
    } else if !(Duration::from_secs(1)..=MOST).contains(&age) {
        Some((
            "this is no time to keep contexts for",
            "it may be \"1s\" to \"24h\", as in keep_context = \"1h\", or \"off\"",
        ))
    } else {
        None
    };
    if let Some((message, help)) = wrong {
        findings.add(said.span(), message, help);
    }
    for word in own {
        findings.add(word.span(), "with `keep_context` Berth says where they are kept", "leave this out");
    }
    Kept { of_all: Some(age), by_lease: true }
}
