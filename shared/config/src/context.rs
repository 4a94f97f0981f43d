//! `keep_context` of a model: that its sessions' contexts outlast a stop of its engine, and for how long.

use std::time::Duration;

use berth_wire::{Driver, EngineKind};

use crate::problem::Findings;
use crate::raw::RawModel;
use crate::template::is_flag;

/// A day: what is older nobody comes back to.
pub(crate) const MOST: Duration = Duration::from_secs(24 * 60 * 60);

/// How long they are kept; what is wrong goes to `findings`.
pub(crate) fn resolve(
    raw: &RawModel,
    kind: EngineKind,
    driver: Driver,
    findings: &mut Findings<'_>,
) -> Option<Duration> {
    let age = raw.keep_context.as_ref()?;
    let wrong = if kind != EngineKind::LlamaCpp || driver != Driver::Process {
        Some(("only contexts of llama.cpp run as a process can be kept", "leave `keep_context` out"))
    } else if !raw.adapters.is_empty() {
        Some(("contexts of a model with adapters cannot be kept", "leave `keep_context` or the adapters out"))
    } else if !(Duration::from_secs(1)..=MOST).contains(&age.get_ref().0) {
        Some((
            "this is no time to keep contexts for",
            "it may be \"1s\" to \"24h\", as in keep_context = \"1h\"",
        ))
    } else {
        None
    };
    if let Some((message, help)) = wrong {
        findings.add(age.span(), message, help);
    }
    let command = raw.command.iter().flat_map(|words| &words.get_ref().0);
    for word in command.chain(&raw.args.0).filter(|word| is_flag(word.get_ref(), &["--slot-save-path"])) {
        findings.add(word.span(), "with `keep_context` Berth says where they are kept", "leave this out");
    }
    Some(age.get_ref().0)
}
