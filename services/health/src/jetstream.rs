//! How full the streams are that refuse what is new when they are full.

use std::collections::BTreeMap;

use async_nats::jetstream::stream::DiscardPolicy;
use berth_bus::Bus;
use futures::TryStreamExt;

/// The share of its limits that each stream of this fleet holds, 0 to 1; `None`: JetStream does not tell.
pub(crate) async fn used(bus: &Bus) -> Option<BTreeMap<String, f64>> {
    let ours = bus.subjects.bucket("");
    let mut streams = bus.jetstream.streams();
    let mut found = BTreeMap::new();
    while let Some(info) = streams.try_next().await.ok()? {
        let name = info.config.name;
        let bare = name.trim_start_matches("KV_").trim_start_matches("OBJ_");
        if info.config.discard != DiscardPolicy::New || !bare.to_lowercase().starts_with(&ours.to_lowercase())
        {
            continue;
        }
        let share = |has: u64, most: i64| {
            u64::try_from(most).ok().filter(|most| *most > 0).map_or(0.0, |most| has as f64 / most as f64)
        };
        let used = share(info.state.bytes, info.config.max_bytes)
            .max(share(info.state.messages, info.config.max_messages));
        found.insert(name, used);
    }
    Some(found)
}
