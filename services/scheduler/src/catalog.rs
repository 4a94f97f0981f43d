//! The configured models, published to `berth_catalog` for everybody.

use berth_bus::{Bus, BusError, put_json};
use berth_wire::{EventBody, Message, ModelSpec, decode_json, slug};
use futures::TryStreamExt;
use tracing::info;

use crate::effects::record;

/// Publishes the models again where none is left: the bucket was lost with what was in it.
pub(crate) async fn restore(bus: &Bus, models: &[ModelSpec]) -> Result<(), BusError> {
    let failed = |source: async_nats::Error| BusError::Nats { what: "list the catalog".into(), source };
    let store = bus.bucket("catalog").await?;
    let mut keys = store.keys().await.map_err(|e| failed(Box::new(e)))?;
    match keys.try_next().await.map_err(|e| failed(Box::new(e)))? {
        Some(_) => Ok(()),
        None => apply(bus, models).await,
    }
}

/// Makes the bucket agree with `models`: what differs is written, what was configured and is not any more is removed.
pub(crate) async fn apply(bus: &Bus, models: &[ModelSpec]) -> Result<(), BusError> {
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
