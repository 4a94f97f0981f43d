//! Who is there: every service of this fleet that answers on the NATS service API, and what each says of itself.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_bus::Bus;
use berth_wire::Timestamp;
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use serde_json::Value;

use crate::rollup::Heard;

/// Asks every service instance for its description.
const INFO: &str = "$SRV.INFO";
/// How long answers are waited for.
const WAIT: Duration = Duration::from_millis(500);
/// How long a service may take to tell of itself.
const REPORT: Duration = Duration::from_secs(2);

/// A service that answers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Service {
    /// As in `nats micro ls`.
    pub(crate) name: String,
    /// What it says of itself; null where it did not answer that.
    pub(crate) report: Value,
}

/// All of them, by `<name>.<instance>`.
pub(crate) type Services = BTreeMap<String, Service>;

impl Service {
    /// Free bytes of an agent's disk.
    pub(crate) fn disk_free(&self) -> Option<u64> {
        self.report.get("disk_free")?.as_u64()
    }

    /// How long the oldest job of each model has waited, as a leader says.
    pub(crate) fn waiting(&self) -> Vec<(String, f64)> {
        let actors = self.report.get("actors").and_then(Value::as_array);
        let waiting = actors.into_iter().flatten().filter_map(|actor| actor.get("state")?.get("waiting"));
        waiting
            .filter_map(Value::as_object)
            .flatten()
            .filter_map(|(model, waiting)| Some((model.clone(), waiting.get("oldest_s")?.as_f64()?)))
            .collect()
    }

    /// What a gateway has counted.
    pub(crate) fn counted(&self) -> Option<Heard> {
        let started = Timestamp(self.report.get("started")?.as_u64()? * 1000);
        let times = serde_json::from_value(self.report.get("times")?.clone()).ok()?;
        Some(Heard { started, times })
    }
}

#[derive(Deserialize)]
struct Info {
    name: String,
    id: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    subject: String,
}

/// Everybody who answers. Other fleets on the same server are told apart by their subjects.
pub(crate) async fn call(bus: &Bus) -> Option<Services> {
    let inbox = bus.client.new_inbox();
    let mut answers = bus.client.subscribe(inbox.clone()).await.ok()?;
    bus.client.publish_with_reply(INFO, inbox, Bytes::new()).await.ok()?;
    let root = format!("{}.", bus.subjects.root());
    let mut found: Vec<(Info, String)> = Vec::new();
    let collect = async {
        while let Some(answer) = answers.next().await {
            let Ok(info) = serde_json::from_slice::<Info>(&answer.payload) else { continue };
            let ours = info.endpoints.iter().find(|endpoint| endpoint.subject.starts_with(&root));
            if let Some(subject) = ours.map(|endpoint| endpoint.subject.clone())
                && info.name.starts_with("berth-")
            {
                found.push((info, subject));
            }
        }
    };
    let _ = tokio::time::timeout(WAIT, collect).await;
    let asked = found.into_iter().map(|(info, subject)| async move {
        let report = report(bus, subject).await.unwrap_or_default();
        (format!("{}.{}", info.name, info.id), Service { name: info.name, report })
    });
    Some(futures::future::join_all(asked).await.into_iter().collect())
}

async fn report(bus: &Bus, subject: String) -> Option<Value> {
    let asked = bus.client.request(subject, Bytes::new());
    let answer = tokio::time::timeout(REPORT, asked).await.ok()?.ok()?;
    serde_json::from_slice(&answer.payload).ok()
}
