//! The one provisioner: makes the server's streams, buckets and object stores agree with `nats/assets.toml`.

use std::time::Duration;

use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::{ErrorCode, kv, object_store, stream};
use bytesize::ByteSize;
use serde::Deserialize;
use thiserror::Error;
use tracing::info;

use crate::connect::Bus;
use crate::error::BusError;

const DECLARED: &str = include_str!("../../../nats/assets.toml");

/// The declaration has a mistake (a test reads it, so a release has none).
#[derive(Debug, Error)]
#[error("nats/assets.toml: {0}")]
pub struct AssetError(String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Assets {
    stream: Vec<StreamAsset>,
    bucket: Vec<BucketAsset>,
    objects: Vec<ObjectsAsset>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Storage {
    File,
    Memory,
}

impl From<Storage> for stream::StorageType {
    fn from(storage: Storage) -> Self {
        match storage {
            Storage::File => Self::File,
            Storage::Memory => Self::Memory,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Retention {
    Workqueue,
    Limits,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Discard {
    New,
    Old,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamAsset {
    name: String,
    description: String,
    subjects: Vec<String>,
    retention: Retention,
    storage: Storage,
    discard: Discard,
    max_messages: i64,
    max_bytes: ByteSize,
    max_age: Option<String>,
    duplicate_window: String,
    #[serde(default)]
    message_ttl: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BucketAsset {
    name: String,
    description: String,
    storage: Storage,
    history: i64,
    max_age: Option<String>,
    limit_markers: Option<String>,
    max_bytes: ByteSize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ObjectsAsset {
    name: String,
    description: String,
    storage: Storage,
    max_age: String,
    max_bytes: ByteSize,
}

fn declared() -> Result<Assets, AssetError> {
    toml::from_str(DECLARED).map_err(|e| AssetError(e.to_string()))
}

fn duration(text: &str) -> Result<Duration, BusError> {
    humantime::parse_duration(text)
        .map_err(|e| BusError::nats("read nats/assets.toml", AssetError(format!("`{text}`: {e}"))))
}

fn optional(text: Option<&String>) -> Result<Option<Duration>, BusError> {
    text.map(|text| duration(text)).transpose()
}

fn signed(size: ByteSize) -> i64 {
    i64::try_from(size.as_u64()).unwrap_or(i64::MAX)
}

/// Creates what is missing and corrects what differs. Safe to repeat, and to run in several places at once.
///
/// # Errors
/// When JetStream is off or out of room, or an asset exists in a shape that cannot be changed.
pub async fn provision(bus: &Bus) -> Result<(), BusError> {
    let assets = declared().map_err(|e| BusError::nats("read nats/assets.toml", e))?;
    for asset in &assets.stream {
        let config = stream_config(bus, asset)?;
        let name = config.name.clone();
        bus.jetstream
            .create_or_update_stream(config)
            .await
            .map_err(|e| BusError::nats(format!("set up the stream {name} (is JetStream on?)"), e))?;
    }
    for asset in &assets.bucket {
        let name = bus.subjects.bucket(&asset.name);
        let config = kv::Config {
            bucket: name.clone(),
            description: asset.description.clone(),
            history: asset.history,
            max_age: optional(asset.max_age.as_ref())?.unwrap_or_default(),
            max_bytes: signed(asset.max_bytes),
            storage: asset.storage.into(),
            num_replicas: 1,
            limit_markers: optional(asset.limit_markers.as_ref())?,
            ..kv::Config::default()
        };
        bus.jetstream
            .create_or_update_key_value(config)
            .await
            .map_err(|e| BusError::nats(format!("set up the bucket {name}"), e))?;
    }
    for asset in &assets.objects {
        let name = bus.subjects.bucket(&asset.name);
        if bus.jetstream.get_object_store(&name).await.is_ok() {
            continue;
        }
        let config = object_store::Config {
            bucket: name.clone(),
            description: Some(asset.description.clone()),
            max_age: duration(&asset.max_age)?,
            max_bytes: signed(asset.max_bytes),
            storage: asset.storage.into(),
            num_replicas: 1,
            ..object_store::Config::default()
        };
        bus.jetstream
            .create_object_store(config)
            .await
            .map_err(|e| BusError::nats(format!("set up the object store {name}"), e))?;
    }
    info!(
        streams = assets.stream.len(),
        buckets = assets.bucket.len(),
        "streams and buckets agree with their declaration"
    );
    Ok(())
}

/// Creates what is missing, without touching the rest: buckets in memory do not survive their server.
///
/// # Errors
/// As [`provision`].
pub async fn repair(bus: &Bus) -> Result<(), BusError> {
    let assets = declared().map_err(|e| BusError::nats("read nats/assets.toml", e))?;
    let streams = assets.stream.iter().map(|asset| stream_name(bus, asset));
    let buckets = assets.bucket.iter().map(|asset| format!("KV_{}", bus.subjects.bucket(&asset.name)));
    let objects = assets.objects.iter().map(|asset| format!("OBJ_{}", bus.subjects.bucket(&asset.name)));
    for name in streams.chain(buckets).chain(objects) {
        match bus.jetstream.get_stream(&name).await {
            Ok(_) => {}
            Err(error) if is_missing(&error) => {
                info!(name, "a stream or bucket is missing; creating it anew");
                return provision(bus).await;
            }
            Err(error) => return Err(BusError::nats(format!("look for {name}"), error)),
        }
    }
    Ok(())
}

fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(told) if told.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

fn stream_name(bus: &Bus, asset: &StreamAsset) -> String {
    match asset.name.as_str() {
        "jobs" => bus.subjects.jobs_stream(),
        _ => bus.subjects.events_stream(),
    }
}

fn stream_config(bus: &Bus, asset: &StreamAsset) -> Result<stream::Config, BusError> {
    Ok(stream::Config {
        name: stream_name(bus, asset),
        description: Some(asset.description.clone()),
        subjects: asset.subjects.iter().map(|s| s.replace("{root}", bus.subjects.root())).collect(),
        retention: match asset.retention {
            Retention::Workqueue => stream::RetentionPolicy::WorkQueue,
            Retention::Limits => stream::RetentionPolicy::Limits,
        },
        storage: asset.storage.into(),
        discard: match asset.discard {
            Discard::New => stream::DiscardPolicy::New,
            Discard::Old => stream::DiscardPolicy::Old,
        },
        max_messages: asset.max_messages,
        max_bytes: signed(asset.max_bytes),
        max_age: optional(asset.max_age.as_ref())?.unwrap_or_default(),
        duplicate_window: duration(&asset.duplicate_window)?,
        allow_message_ttl: asset.message_ttl,
        allow_direct: true,
        num_replicas: 1,
        ..stream::Config::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declaration_is_valid() {
        let assets = declared().unwrap();
        assert_eq!(assets.stream.len(), 2);
        for bucket in &assets.bucket {
            optional(bucket.max_age.as_ref()).unwrap();
            optional(bucket.limit_markers.as_ref()).unwrap();
        }
    }
}
