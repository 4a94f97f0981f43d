//! `sleep` and `sleep_memory` of a model: how its engines sleep, and what they take of host RAM then.

use std::fmt;

use berth_wire::{EngineKind, SleepLevel, SleepSpec};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

use crate::model::check_memory;
use crate::problem::Findings;
use crate::raw::RawModel;

const HELP: &str = "write sleep = 1 (weights wait in host RAM), 2 (they are read again by waking) or \"off\"";

/// `"off"`, 1 or 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Depth(Option<SleepLevel>);

impl<'de> Deserialize<'de> for Depth {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Depth;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("1, 2 or \"off\"")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Depth, E> {
                match text.trim() {
                    "off" => Ok(Depth(None)),
                    "1" => self.visit_i64(1),
                    "2" => self.visit_i64(2),
                    other => Err(E::custom(format!("`{other}` is no way to sleep\n{HELP}"))),
                }
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Depth, E> {
                match number {
                    1 => Ok(Depth(Some(SleepLevel::Ram))),
                    2 => Ok(Depth(Some(SleepLevel::Disk))),
                    _ => Err(E::custom(format!("there is no sleep level {number}\n{HELP}"))),
                }
            }
            fn visit_bool<E: Error>(self, _: bool) -> Result<Depth, E> {
                Err(E::custom(format!("this is neither true nor false\n{HELP}")))
            }
        }
        d.deserialize_any(Any)
    }
}

/// vLLM sleeps at level 1 where its host sets RAM aside for that; no other engine can.
pub(crate) fn resolve(raw: &RawModel, kind: EngineKind, findings: &mut Findings<'_>) -> Option<SleepSpec> {
    let can = kind == EngineKind::Vllm;
    let level = match &raw.sleep {
        None => can.then_some(SleepLevel::Ram),
        Some(depth) => {
            if let (Some(_), false) = (depth.get_ref().0, can) {
                let message = format!("engine \"{}\" cannot sleep", kind.as_str());
                findings.add(depth.span(), message, "only vllm can; leave `sleep` out");
            }
            depth.get_ref().0
        }
    };
    if let Some(memory) = &raw.sleep_memory {
        check_memory(memory, findings);
        if level.is_none() {
            findings.add(
                memory.span(),
                "this model does not sleep",
                "leave `sleep_memory` out, or set `sleep`",
            );
        }
    }
    let ram = raw.sleep_memory.as_ref().map(|memory| memory.get_ref().0);
    level.map(|level| SleepSpec { level, ram })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    fn parsed(more: &str) -> Result<Option<SleepSpec>, String> {
        let text = format!("[[models]]\nid = \"m\"\n{more}\n");
        let config = Config::parse(&text, "test.toml").map_err(|error| error.to_string())?;
        Ok(config.models.into_iter().next().and_then(|model| model.engine.sleep))
    }

    #[test]
    fn vllm_sleeps_unless_it_is_told_not_to_and_others_never() {
        let ram = SleepSpec { level: SleepLevel::Ram, ram: None };
        assert_eq!(parsed("engine = \"vllm\""), Ok(Some(ram)));
        assert_eq!(parsed("engine = \"vllm\"\nsleep = \"off\""), Ok(None));
        let disk = SleepSpec { level: SleepLevel::Disk, ram: Some(1 << 30) };
        assert_eq!(parsed("engine = \"vllm\"\nsleep = 2\nsleep_memory = \"1GiB\""), Ok(Some(disk)));
        assert_eq!(parsed("engine = \"llama.cpp\""), Ok(None));
        let refused = parsed("engine = \"llama.cpp\"\nsleep = 1").unwrap_err();
        assert!(refused.contains("\"llama.cpp\" cannot sleep"), "{refused}");
        for wrong in ["3", "true", "\"deep\""] {
            let refused = parsed(&format!("engine = \"vllm\"\nsleep = {wrong}")).unwrap_err();
            assert!(refused.contains("sleep = 1 (weights wait in host RAM)"), "{refused}");
        }
    }
}
