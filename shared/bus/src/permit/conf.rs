//! The table as nats-server reads it.

use std::fmt::Write;

use berth_wire::Subjects;

use super::identity::Identity;
use super::table::permissions;

/// A key that lets somebody in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyOf {
    /// Whom.
    pub identity: Identity,
    /// The public half (`U...`).
    pub public: String,
}

/// The authorization block for these keys.
///
/// Answers go by `allow_responses`, one for each question: a role may then say something at an inbox only if it was asked
/// from there, and none can guess itself into the answers that another waits for. Streams of messages never go so: frames,
/// logs and acknowledgements have subjects of their own in the table.
#[must_use]
pub fn authorization(keys: &[KeyOf], subjects: &Subjects) -> String {
    let mut text = String::from("authorization {\n  users = [\n");
    for key in keys {
        let may = permissions(&key.identity, subjects);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "    # {}\n    {{ nkey: {}, permissions: {{", key.identity.name(), key.public);
        let _ = writeln!(text, "      publish: {{ allow: [{}] }}", quoted(&may.publish));
        let _ = writeln!(text, "      subscribe: {{ allow: [{}] }}", quoted(&may.subscribe));
        let _ = writeln!(text, "      allow_responses: {{ max: 1, expires: \"1m\" }}\n    }} }}");
    }
    text.push_str("  ]\n}\n");
    text
}

fn quoted(subjects: &[String]) -> String {
    subjects.iter().fold(String::new(), |mut text, subject| {
        let _ = write!(text, "\n        \"{subject}\"");
        text
    }) + "\n      "
}
