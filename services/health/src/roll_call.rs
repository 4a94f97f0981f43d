//! Who is there: every service of this fleet that answers on the NATS service API.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_bus::Bus;
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;

/// Asks every service instance for its description.
const INFO: &str = "$SRV.INFO";
/// How long answers are waited for.
const WAIT: Duration = Duration::from_millis(500);

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

/// Instances that answer, by service. Other fleets on the same server are told apart by their subjects.
pub(crate) async fn call(bus: &Bus) -> Option<BTreeMap<String, Vec<String>>> {
    let inbox = bus.client.new_inbox();
    let mut answers = bus.client.subscribe(inbox.clone()).await.ok()?;
    bus.client.publish_with_reply(INFO, inbox, Bytes::new()).await.ok()?;
    let root = format!("{}.", bus.subjects.root());
    let mut services: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let collect = async {
        while let Some(answer) = answers.next().await {
            let Ok(info) = serde_json::from_slice::<Info>(&answer.payload) else { continue };
            let ours = info.endpoints.iter().any(|endpoint| endpoint.subject.starts_with(&root));
            if ours && info.name.starts_with("berth-") {
                services.entry(info.name).or_default().push(info.id);
            }
        }
    };
    let _ = tokio::time::timeout(WAIT, collect).await;
    for instances in services.values_mut() {
        instances.sort_unstable();
    }
    Some(services)
}
