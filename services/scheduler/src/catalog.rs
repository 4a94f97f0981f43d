//! The configured models, published to `berth_catalog` for everybody.

use std::time::SystemTime;

use berth_bus::{Bus, BusError, get_json, put_json};
use berth_config::{Config, SchedulerConfig};
use berth_wire::{EventBody, Message, ModelSpec, PolicyRecord, PolicySettings, Timestamp, decode_json, slug};
use futures::TryStreamExt;
use serde::Serialize;
use tracing::{info, warn};

use crate::effects::record;

/// Publishes the configured catalog and policy, unless this configuration was the last to be published: then what was
/// applied to the fleet since stays.
pub(crate) async fn publish(bus: &Bus, config: &Config) -> Result<(), BusError> {
    let policy = config.scheduler.policy();
    let configured = name(&config.models, &policy);
    let store = bus.bucket("policy").await?;
    let there = get_json::<PolicyRecord>(&store, PolicyRecord::KEY).await.unwrap_or_default();
    let same = there.is_some_and(|(record, _)| record.configured == configured);
    let catalog = bus.bucket("catalog").await?;
    let failed = |e| BusError::Nats { what: "read the catalog".into(), source: Box::new(e) };
    let empty = catalog.status().await.map_err(failed)?.values() == 0;
    if same && (!empty || config.models.is_empty()) {
        info!("this configuration was published before; what was applied since stays");
        return Ok(());
    }
    // The guard first: an apply that has looked at what was there before is told.
    let record = PolicyRecord { configured, at: Timestamp::from(SystemTime::now()), policy };
    put_json(&store, PolicyRecord::KEY, &record).await?;
    apply(bus, &config.models).await
}

/// Names a configuration, in 16 hexadecimal digits.
fn name(models: &[ModelSpec], policy: &PolicySettings) -> String {
    #[derive(Serialize)]
    struct Configured<'a> {
        models: &'a [ModelSpec],
        policy: &'a PolicySettings,
    }
    let written = serde_json::to_vec(&Configured { models, policy }).unwrap_or_default();
    blake3::hash(&written).to_hex().chars().take(16).collect()
}

/// The settings of a scheduler under the fleet's policy, as far as that can be read.
pub(crate) async fn followed(bus: &Bus, config: &SchedulerConfig) -> SchedulerConfig {
    let read = async {
        let store = bus.bucket("policy").await?;
        get_json::<PolicyRecord>(&store, PolicyRecord::KEY).await
    };
    match read.await {
        Ok(Some((record, _))) => config.under(&record.policy),
        Ok(None) => config.clone(),
        Err(error) => {
            warn!(%error, "cannot read the fleet's policy; following the configuration");
            config.clone()
        }
    }
}

/// Makes the bucket agree with `models`: what differs is written, what was configured and is not any more is removed.
async fn apply(bus: &Bus, models: &[ModelSpec]) -> Result<(), BusError> {
    let store = bus.bucket("catalog").await?;
    let failed = |what: &str, e: async_nats::Error| BusError::Nats { what: what.to_owned(), source: e };
    let held: Vec<String> = store
        .keys()
        .await
        .map_err(|e| failed("list the catalog", Box::new(e)))?
        .try_collect()
        .await
        .map_err(|e| failed("list the catalog", Box::new(e)))?;
    let mut changed = 0u32;
    for model in models {
        let key = slug::encode(model.id.as_str());
        let there = store.get(&key).await.map_err(|e| failed("read the catalog", Box::new(e)))?;
        let same = there.is_some_and(|value| decode_json::<ModelSpec>(&value).is_ok_and(|m| m == *model));
        if !same {
            put_json(&store, &key, model).await?;
            changed += 1;
        }
    }
    for key in held {
        let wanted = models.iter().any(|model| slug::encode(model.id.as_str()) == key);
        if !wanted {
            // What hosts found is the leader's to remove.
            let there = store.get(&key).await.map_err(|e| failed("read the catalog", Box::new(e)))?;
            if there.is_some_and(|value| decode_json::<ModelSpec>(&value).is_ok_and(|m| m.is_found())) {
                continue;
            }
            store.delete(&key).await.map_err(|e| failed("remove a model", Box::new(e)))?;
            changed += 1;
        }
    }
    if changed > 0 {
        info!(changed, schema = ModelSpec::SCHEMA, "catalog updated from the configuration");
        let models = u32::try_from(models.len()).unwrap_or(u32::MAX);
        record(bus, EventBody::CatalogApplied { models }).await;
    }
    Ok(())
}
