//! The one provisioner: makes the server's streams, buckets and object stores agree with `nats/assets.toml`.

use std::time::Duration;

use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::{ErrorCode, kv, object_store, stream};
use berth_wire::Subjects;
use bytesize::ByteSize;
use serde::Deserialize;
use thiserror::Error;
use tracing::{info, warn};

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
    for asset in &assets.bucket {
        let name = bus.subjects.bucket(&asset.name);
        let config = kv::Config {
            bucket: name.clone(),
            description: asset.description.clone(),
            history: asset.history,
            max_age: optional(asset.max_age.as_ref())?.unwrap_or_default(),
            storage: asset.storage.into(),
            num_replicas: bus.replicas,
            limit_markers: optional(asset.limit_markers.as_ref())?,
            ..kv::Config::default()
        };
        fit(bus, &format!("KV_{name}"), asset.max_bytes, async |max_bytes| {
            bus.jetstream.create_or_update_key_value(kv::Config { max_bytes, ..config.clone() }).await
        })
        .await
        .map_err(|e| BusError::nats(format!("set up the bucket {name}"), e))?;
    }
    for asset in &assets.objects {
        let name = bus.subjects.bucket(&asset.name);
        if bus.jetstream.get_object_store(&name).await.is_ok() {
            recopy(bus, &format!("OBJ_{name}")).await?;
            continue;
        }
        let config = object_store::Config {
            bucket: name.clone(),
            description: Some(asset.description.clone()),
            max_age: duration(&asset.max_age)?,
            storage: asset.storage.into(),
            num_replicas: bus.replicas,
            ..object_store::Config::default()
        };
        fit(bus, &format!("OBJ_{name}"), asset.max_bytes, async |max_bytes| {
            bus.jetstream.create_object_store(object_store::Config { max_bytes, ..config.clone() }).await
        })
        .await
        .map_err(|e| BusError::nats(format!("set up the object store {name}"), e))?;
    }
    // The largest last, since they may be smaller than declared.
    for asset in &assets.stream {
        let config = stream_config(bus, asset)?;
        let name = config.name.clone();
        fit(bus, &name, asset.max_bytes, async |max_bytes| {
            bus.jetstream.create_or_update_stream(stream::Config { max_bytes, ..config.clone() }).await
        })
        .await
        .map_err(|e| BusError::nats(format!("set up the stream {name} (is JetStream on?)"), e))?;
    }
    info!(
        streams = assets.stream.len(),
        buckets = assets.bucket.len(),
        "streams and buckets agree with their declaration"
    );
    Ok(())
}

/// Keeps an object store on as many servers as is asked for.
async fn recopy(bus: &Bus, stream: &str) -> Result<(), BusError> {
    let failed = |e: &dyn std::error::Error| {
        BusError::nats(format!("look after {stream}"), std::io::Error::other(e.to_string()))
    };
    let found = bus.jetstream.get_stream(stream).await.map_err(|e| failed(&e))?;
    let config = &found.cached_info().config;
    if config.num_replicas != bus.replicas {
        let config = stream::Config { num_replicas: bus.replicas, ..config.clone() };
        bus.jetstream.update_stream(config).await.map_err(|e| failed(&e))?;
    }
    Ok(())
}

/// The least that an asset is of use with.
const LEAST: i64 = 4 << 20;

/// Makes an asset of its declared size, or of a part of the room there is: JetStream sets aside the whole of a limit at
/// once, of three quarters of what was free on its disk. One that exists stays as it is where it cannot grow.
async fn fit<T, E: std::error::Error>(
    bus: &Bus,
    stream: &str,
    declared: ByteSize,
    make: impl AsyncFn(i64) -> Result<T, E>,
) -> Result<(), E> {
    let mut size = signed(declared);
    while let Err(error) = make(size).await {
        if !is_out_of_room(&error) || size / 4 < LEAST {
            return Err(error);
        }
        if bus.jetstream.get_stream(stream).await.is_ok() {
            return Ok(());
        }
        // Not the most that fits: what comes after it needs room as well.
        size /= 4;
    }
    if size < signed(declared) {
        let given = ByteSize(u64::try_from(size).unwrap_or_default());
        warn!(stream, %declared, %given, "the NATS server has no room for more: free disk space there");
    }
    Ok(())
}

/// The server's words are passed on in the error's own, at some depth.
fn is_out_of_room(error: &dyn std::error::Error) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if text.contains("insufficient storage resources") || text.contains("insufficient memory resources") {
            return true;
        }
        next = error.source();
    }
    false
}

/// Creates what is missing, without touching the rest: buckets in memory do not survive their server. Whether
/// something was.
///
/// # Errors
/// As [`provision`].
pub async fn repair(bus: &Bus) -> Result<bool, BusError> {
    for name in names(&bus.subjects) {
        match bus.jetstream.get_stream(&name).await {
            Ok(_) => {}
            Err(error) if is_missing(&error) => {
                info!(name, "a stream or bucket is missing; creating it anew");
                return provision(bus).await.map(|()| true);
            }
            Err(error) => return Err(BusError::nats(format!("look for {name}"), error)),
        }
    }
    Ok(false)
}

/// Every stream that Berth has, those under buckets and object stores included.
pub(crate) fn names(subjects: &Subjects) -> Vec<String> {
    // A test reads the declaration.
    let Ok(assets) = declared() else { return Vec::new() };
    let streams = assets.stream.iter().map(|asset| stream_name(subjects, asset));
    let buckets = assets.bucket.iter().map(|asset| format!("KV_{}", subjects.bucket(&asset.name)));
    let objects = assets.objects.iter().map(|asset| format!("OBJ_{}", subjects.bucket(&asset.name)));
    streams.chain(buckets).chain(objects).collect()
}

fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(told) if told.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

fn stream_name(subjects: &Subjects, asset: &StreamAsset) -> String {
    match asset.name.as_str() {
        "jobs" => subjects.jobs_stream(),
        _ => subjects.events_stream(),
    }
}

fn stream_config(bus: &Bus, asset: &StreamAsset) -> Result<stream::Config, BusError> {
    Ok(stream::Config {
        name: stream_name(&bus.subjects, asset),
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
        max_age: optional(asset.max_age.as_ref())?.unwrap_or_default(),
        duplicate_window: duration(&asset.duplicate_window)?,
        allow_message_ttl: asset.message_ttl,
        allow_direct: true,
        num_replicas: bus.replicas,
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
