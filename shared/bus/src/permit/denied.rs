//! What the server has denied this connection: it says so by an event alone, and a denied subscription looks like one in
//! which nothing happens.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tracing::{error, warn};

/// Subjects that are remembered; more would not make it clearer.
const KEPT: usize = 1024;

/// Something that the server did not allow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Denial {
    /// `publish` or `subscribe`.
    pub action: &'static str,
    /// The subject.
    pub subject: String,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Denials(Arc<Mutex<BTreeSet<Denial>>>);

impl Denials {
    /// Takes in what the server reports; `false` when it is of something else.
    pub(crate) fn note(&self, connection: &str, report: &str) -> bool {
        let Some(denial) = read(report) else { return false };
        let Denial { action, subject } = &denial;
        if *action == "publish" && subject.starts_with("_INBOX.") {
            // Whoever asked has long given up: an answer may be sent for a minute, and once.
            warn!(connection, subject, "the NATS server does not take an answer: it came late, or twice");
            return true;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < KEPT && known.insert(denial.clone()) {
            error!(
                connection,
                "the NATS server does not let us {action} `{subject}`: this process has the key of another role or host, or \
                 the server's configuration is older than this berth; correct nkey_file under [bus], or run \
                 `berth nats update` and reload the server (`nats-server --signal reload`)"
            );
        }
        true
    }

    pub(crate) fn all(&self) -> Vec<Denial> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    pub(crate) fn has(&self, action: &str, subject: &str) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().any(|denial| denial.action == action && denial.subject == subject)
    }

    /// A new connection may be allowed more: permissions are reloaded by a reconnect.
    pub(crate) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// As in `Permissions Violation for Subscription to "a.b" using queue "q"`.
fn read(report: &str) -> Option<Denial> {
    let lower = report.to_ascii_lowercase();
    let action = match lower.split_once("permissions violation for ")?.1 {
        rest if rest.starts_with("publish") => "publish",
        rest if rest.starts_with("subscription") => "subscribe",
        _ => return None,
    };
    let subject = report.split('"').nth(1)?.to_owned();
    Some(Denial { action, subject })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_says_is_read() {
        let denials = Denials::default();
        assert!(denials.note("test", "Permissions Violation for Subscription to \"a.B\" using queue \"q\""));
        assert!(denials.note("test", "Permissions Violation for Publish to \"c\""));
        assert!(!denials.note("test", "Stale Connection"));
        assert!(denials.has("subscribe", "a.B") && denials.has("publish", "c"));
        denials.forget();
        assert!(denials.all().is_empty());
    }
}
