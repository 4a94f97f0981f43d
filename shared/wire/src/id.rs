//! Names of things. Cheap to clone: they are keys of every map in the core.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// A text that is no id of its kind.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{text}` is not a valid {kind}: {rule}")]
pub struct IdError {
    kind: &'static str,
    text: String,
    rule: &'static str,
}

impl IdError {
    /// Of a text that must not be shown.
    pub(crate) fn hidden(kind: &'static str, rule: &'static str) -> Self {
        Self { kind, text: "***".into(), rule }
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type! {
    /// A catalog entry's name (`qwen2.5-7b`, `org/model:tag`): any text a client may send.
    ModelId
}
name_type! {
    /// A host's name; `[A-Za-z0-9_-]` only, since it is a subject token (configuration checks it).
    HostId
}
name_type! {
    /// One gateway worker's name; `[A-Za-z0-9_-]` only, since it is a subject token.
    GatewayId
}
name_type! {
    /// A conversation, as its client names it: any text.
    SessionId
}
name_type! {
    /// An API key's name (never the key itself).
    KeyId
}
name_type! {
    /// One accelerator of a host: a GPU's UUID, or `ram` for the CPU and RAM pseudo-device.
    AcceleratorId
}

/// One inference request, named by a UUID v7 so that ids sort by submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u128);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for JobId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError { kind: "job id", text: text.into(), rule: "32 hexadecimal digits" };
        if text.len() != 32 {
            return Err(bad());
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| bad())
    }
}

/// The leader's fencing token: the revision of its key in `berth_leader`. A host refuses commands of an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An epoch and a counter within it: unique and increasing across leaders, without a shared counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Stamp {
    epoch: u64,
    n: u32,
}

impl Stamp {
    fn parse(text: &str, kind: &'static str) -> Result<Self, IdError> {
        let bad = || IdError { kind, text: text.into(), rule: "an epoch and a count, as in `7-3`" };
        let (epoch, n) = text.split_once('-').ok_or_else(bad)?;
        Ok(Self { epoch: epoch.parse().map_err(|_| bad())?, n: n.parse().map_err(|_| bad())? })
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.n)
    }
}

macro_rules! stamp_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Stamp);

        impl $name {
            /// The `n`th of its leader's epoch.
            #[must_use]
            pub fn new(epoch: Epoch, n: u32) -> Self {
                Self(Stamp { epoch: epoch.0, n })
            }

            /// The epoch of the leader that made it.
            #[must_use]
            pub fn epoch(self) -> Epoch {
                Epoch(self.0.epoch)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Stamp::parse(text, $kind).map(Self)
            }
        }

        string_serde!($name);
    };
}

macro_rules! string_serde {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(stringify!($name))
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                d.deserialize_str(Text)
            }
        }
    };
}

string_serde!(JobId);

stamp_type! {
    /// One running (or starting) inference server.
    EngineId, "engine id"
}
stamp_type! {
    /// One dispatch of a job; a later attempt compares greater, also across leaders.
    Attempt, "attempt"
}

impl Attempt {
    /// The one attempt of a job on the express lane, which no leader numbers: older than any that a leader makes.
    pub const EXPRESS: Self = Self(Stamp { epoch: 0, n: 1 });

    /// Whether it is the attempt of the express lane.
    #[must_use]
    pub fn is_express(self) -> bool {
        self == Self::EXPRESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_what_they_print() {
        let job = JobId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
        assert_eq!(job.to_string().parse::<JobId>().unwrap(), job);
        let engine = EngineId::new(Epoch(7), 3);
        assert_eq!(engine.to_string(), "7-3");
        assert_eq!("7-3".parse::<EngineId>().unwrap(), engine);
    }

    #[test]
    fn a_later_leaders_attempt_is_the_greater_one() {
        assert!(Attempt::new(Epoch(8), 1) > Attempt::new(Epoch(7), 900));
        assert!(Attempt::new(Epoch(1), 1) > Attempt::EXPRESS);
    }

    #[test]
    fn a_malformed_id_says_what_it_should_be() {
        let err = "7".parse::<Attempt>().unwrap_err();
        assert_eq!(err.to_string(), "`7` is not a valid attempt: an epoch and a count, as in `7-3`");
        assert!("xyz".parse::<JobId>().is_err());
    }
}
