//! What a right amounts to in subjects of NATS and JetStream.

use berth_wire::Subjects;

/// One thing that a role may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Right {
    /// Publish, or ask.
    Say(String),
    /// Subscribe.
    Hear(String),
    /// Read a bucket and follow it.
    Follow(&'static str),
    /// Write the keys of a bucket that match; it can be opened, not read.
    Write(&'static str, String),
    /// Read the objects of a store.
    Fetch(&'static str),
    /// Write and delete the objects of a store.
    Store(&'static str),
    /// Read the stream of jobs as its only consumer, remove what has ended, and begin behind epochs of the past.
    Lead,
    /// Look into the stream of jobs.
    ViewJobs,
    /// Read the stream of facts.
    ReadFacts,
    /// Answer `nats micro` under this name.
    Serve(&'static str),
    /// Ask for all services, streams and buckets.
    LookAround,
    /// Create and change the streams and buckets that Berth declares.
    Provision,
}

/// Subjects that may be published and subscribed; what is not there is denied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permissions {
    /// To publish.
    pub publish: Vec<String>,
    /// To subscribe.
    pub subscribe: Vec<String>,
}

impl Permissions {
    /// Whether a subject may be published.
    #[must_use]
    pub fn may_publish(&self, subject: &str) -> bool {
        self.publish.iter().any(|allowed| covers(allowed, subject))
    }

    /// Whether a subject, or all that a pattern has, may be subscribed.
    #[must_use]
    pub fn may_subscribe(&self, subject: &str) -> bool {
        self.subscribe.iter().any(|allowed| covers(allowed, subject))
    }

    pub(super) fn add(&mut self, right: &Right, subjects: &Subjects) {
        match right {
            Right::Say(subject) => self.publish.push(subject.clone()),
            Right::Hear(subject) => self.subscribe.push(subject.clone()),
            Right::Follow(bucket) => self.read(&format!("KV_{}", subjects.bucket(bucket))),
            Right::Write(bucket, keys) => {
                let bucket = subjects.bucket(bucket);
                self.api(&["STREAM.INFO"], &format!("KV_{bucket}"));
                self.publish.push(format!("$KV.{bucket}.{keys}"));
            }
            Right::Fetch(store) => self.read(&format!("OBJ_{}", subjects.bucket(store))),
            Right::Store(store) => {
                let store = subjects.bucket(store);
                self.read(&format!("OBJ_{store}"));
                self.api(&["STREAM.PURGE"], &format!("OBJ_{store}"));
                self.publish.extend([format!("$O.{store}.C.*"), format!("$O.{store}.M.*")]);
            }
            Right::Lead => {
                let jobs = subjects.jobs_stream();
                self.look_into(&jobs);
                self.api(&["CONSUMER.NAMES"], &jobs);
                self.publish.push(format!("$JS.API.CONSUMER.DELETE.{jobs}.*"));
                self.publish.push(format!("$JS.ACK.{jobs}.>"));
                // A server that has lost its store would begin again with epochs that hosts have seen.
                self.api(&["STREAM.PURGE"], &format!("KV_{}", subjects.bucket("leader")));
            }
            Right::ViewJobs => self.look_into(&subjects.jobs_stream()),
            Right::ReadFacts => self.read(&subjects.events_stream()),
            Right::Serve(name) => {
                for verb in ["PING", "INFO", "STATS"] {
                    self.subscribe.push(format!("$SRV.{verb}"));
                    self.subscribe.push(format!("$SRV.{verb}.{name}"));
                    self.subscribe.push(format!("$SRV.{verb}.{name}.*"));
                }
            }
            Right::LookAround => {
                self.publish.push("$SRV.>".into());
                for ask in ["INFO", "STREAM.LIST", "STREAM.NAMES", "STREAM.INFO.*"] {
                    self.publish.push(format!("$JS.API.{ask}"));
                }
                // The NATS CLI clears away the consumers by which it looks; not of jobs, where the leader's is.
                let jobs = subjects.jobs_stream();
                for asset in crate::assets::names(subjects).into_iter().filter(|asset| *asset != jobs) {
                    self.publish.push(format!("$JS.API.CONSUMER.DELETE.{asset}.*"));
                }
                for ask in ["CONSUMER.LIST.*", "CONSUMER.NAMES.*", "CONSUMER.INFO.*.*"] {
                    self.publish.push(format!("$JS.API.{ask}"));
                }
            }
            Right::Provision => {
                self.publish.push("$JS.API.INFO".into());
                for asset in crate::assets::names(subjects) {
                    self.api(&["STREAM.INFO", "STREAM.CREATE", "STREAM.UPDATE"], &asset);
                }
            }
        }
    }

    fn api(&mut self, asks: &[&str], stream: &str) {
        self.publish.extend(asks.iter().map(|ask| format!("$JS.API.{ask}.{stream}")));
    }

    /// Messages of a stream as they come. A consumer that has lost its place, as by a restart of the server, is cleared away for
    /// a new one; the names of others' are not to be had.
    fn read(&mut self, stream: &str) {
        self.look_into(stream);
        self.publish.push(format!("$JS.API.CONSUMER.DELETE.{stream}.*"));
    }

    /// Messages of a stream: one at a time, or by consumers, which their maker alone hears at its inbox.
    fn look_into(&mut self, stream: &str) {
        self.api(&["STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET", "CONSUMER.CREATE"], stream);
        self.publish.push(format!("$JS.API.DIRECT.GET.{stream}.>"));
        self.publish.push(format!("$JS.API.CONSUMER.CREATE.{stream}.>"));
        self.publish.push(format!("$JS.API.CONSUMER.INFO.{stream}.*"));
        self.publish.push(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.*"));
        self.publish.push(format!("$JS.FC.{stream}.>"));
    }

    pub(super) fn tidy(mut self) -> Self {
        for list in [&mut self.publish, &mut self.subscribe] {
            list.sort();
            list.dedup();
        }
        self
    }
}

/// Whether all that `subject` has, itself perhaps a pattern, is in `pattern`.
fn covers(pattern: &str, subject: &str) -> bool {
    let mut subject = subject.split('.');
    for token in pattern.split('.') {
        match (token, subject.next()) {
            (">", Some(_)) => return true,
            ("*", Some(part)) if part != ">" => {}
            (token, Some(part)) if token == part => {}
            _ => return false,
        }
    }
    subject.next().is_none()
}

impl Right {
    /// In words, for people.
    #[must_use]
    pub fn told(&self, subjects: &Subjects) -> String {
        let code = |name: &str| format!("`{name}`");
        let bucket = |name: &str| code(&subjects.bucket(name));
        match self {
            Self::Say(subject) => format!("publish {}", code(subject)),
            Self::Hear(subject) => format!("hear {}", code(subject)),
            Self::Follow(name) => format!("read the bucket {}", bucket(name)),
            Self::Write(name, keys) if keys == ">" => format!("write the bucket {}", bucket(name)),
            Self::Write(name, keys) => format!("write {} in the bucket {}", code(keys), bucket(name)),
            Self::Fetch(name) => format!("read the object store {}", bucket(name)),
            Self::Store(name) => format!("read and write the object store {}", bucket(name)),
            Self::Lead => {
                format!("consume the stream {}, and raise its own epoch", code(&subjects.jobs_stream()))
            }
            Self::ViewJobs => format!("view the stream {}", code(&subjects.jobs_stream())),
            Self::ReadFacts => format!("read the stream {}", code(&subjects.events_stream())),
            Self::Serve(name) => format!("answer `nats micro` as {}", code(name)),
            Self::LookAround => "list services, streams and buckets".into(),
            Self::Provision => "create and change Berth's streams and buckets".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_what_nats_says_it_does() {
        assert!(covers("a.*.c", "a.b.c") && covers("a.>", "a.b.c") && covers("a.*", "a.*"));
        assert!(covers("a.>", "a.*.b") && covers("a.>", "a.>"));
        assert!(
            !covers("a.*", "a.>") && !covers("a.b", "a.*") && !covers("a.>", "a") && !covers("a.*", "a.b.c")
        );
    }
}
