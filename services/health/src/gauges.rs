//! What the fleet is like now, as gauges. One of what is gone is set back to 0, since a recorder forgets none.

use std::collections::BTreeMap;

use berth_telemetry::metric;
use berth_wire::EngineState;
use metrics::Gauge;

use crate::alerts::{Alert, Raised};
use crate::picture::Levels;
use crate::roll_call::Services;
use crate::rollup::Look;

type Labels = Vec<(&'static str, String)>;

/// Every gauge that was ever set, with what it was set to this time.
#[derive(Default)]
pub(crate) struct Gauges(BTreeMap<(&'static str, Labels), (Gauge, Option<f64>)>);

impl Gauges {
    fn set(&mut self, name: &'static str, labels: Labels, value: f64) {
        let entry = self.0.entry((name, labels)).or_insert_with_key(|(name, labels)| {
            let labels: Vec<metrics::Label> =
                labels.iter().map(|(key, value)| metrics::Label::new(*key, value.clone())).collect();
            (metrics::gauge!(*name, labels), None)
        });
        *entry.1.get_or_insert(0.0) += value;
    }

    /// All of it at once.
    pub(crate) fn show(
        &mut self,
        levels: &Levels,
        services: &Services,
        jetstream: &BTreeMap<String, f64>,
        raised: &[Raised],
    ) {
        self.set(metric::HOSTS, Vec::new(), levels.hosts.len() as f64);
        for engine in levels.engines.values() {
            let model = || ("model", engine.model.to_string());
            self.set(metric::ENGINES, vec![model(), ("state", engine.state.as_str().to_owned())], 1.0);
            if engine.state == EngineState::Ready {
                self.set(metric::SLOTS, vec![model()], f64::from(engine.concurrency));
                self.set(metric::SLOTS_USED, vec![model()], f64::from(engine.running));
                self.set(metric::LANES, vec![model()], f64::from(u8::from(engine.lane)));
            }
        }
        self.accelerators(levels);
        for service in services.values() {
            let host = service.report.get("host").and_then(serde_json::Value::as_str);
            if let (Some(host), Some(free)) = (host, service.disk_free()) {
                self.set(metric::DISK_FREE, vec![("host", host.to_owned())], free as f64);
            }
        }
        for (stream, used) in jetstream {
            self.set(metric::JETSTREAM_USED, vec![("stream", stream.clone())], *used);
        }
        for alert in Alert::ALL {
            let count = raised.iter().filter(|raised| raised.alert == alert).count();
            self.set(metric::ALERTS, vec![("alert", alert.as_str().to_owned())], count as f64);
        }
        for (gauge, value) in self.0.values_mut() {
            gauge.set(value.take().unwrap_or_default());
        }
    }

    fn accelerators(&mut self, levels: &Levels) {
        let reserved = reserved(levels);
        for beat in levels.hosts.values() {
            for accelerator in &beat.accelerators {
                let labels =
                    || vec![("host", beat.host.to_string()), ("accelerator", accelerator.id.to_string())];
                let set_aside = reserved.get(&(beat.host.as_str(), accelerator.id.as_str()));
                self.set(metric::ACCELERATOR_MEMORY, labels(), accelerator.memory as f64);
                self.set(
                    metric::ACCELERATOR_RESERVED,
                    labels(),
                    set_aside.copied().unwrap_or_default() as f64,
                );
                for (name, bytes) in [
                    (metric::ACCELERATOR_HELD, accelerator.held),
                    (metric::ACCELERATOR_UNEXPLAINED, accelerator.unexplained),
                ] {
                    if let Some(bytes) = bytes {
                        self.set(name, labels(), bytes as f64);
                    }
                }
            }
        }
    }
}

/// Bytes set aside, by host and accelerator.
fn reserved(levels: &Levels) -> BTreeMap<(&str, &str), u64> {
    let mut reserved: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for engine in levels.engines.values().filter(|engine| !engine.state.is_gone()) {
        for part in &engine.reservations {
            *reserved.entry((engine.host.as_str(), part.accelerator.as_str())).or_default() += part.bytes;
        }
    }
    reserved
}

/// How accelerators are used just now.
pub(crate) fn looks(levels: &Levels) -> Vec<Look> {
    let reserved = reserved(levels);
    let mut looks = Vec::new();
    for beat in levels.hosts.values() {
        for accelerator in &beat.accelerators {
            let set_aside =
                reserved.get(&(beat.host.as_str(), accelerator.id.as_str())).copied().unwrap_or_default();
            let busy = levels.engines.values().any(|engine| {
                engine.running > 0
                    && engine.host == beat.host
                    && engine.reservations.iter().any(|part| part.accelerator == accelerator.id)
            });
            looks.push(Look {
                accelerator: format!("{}.{}", beat.host, accelerator.id),
                busy,
                reserved: if accelerator.memory == 0 {
                    0.0
                } else {
                    set_aside as f64 / accelerator.memory as f64
                },
            });
        }
    }
    looks
}
