//! What earlier leaders have written down, for a leader that begins.

use berth_bus::{Bus, View};
use berth_wire::{Drain, Lease, ModelId, Profile, Timestamp};
use tracing::info;

/// Leases, profiles and drained hosts as they are kept.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) leases: Vec<Lease>,
    pub(crate) profiles: Vec<Profile>,
    pub(crate) drains: Vec<Drain>,
}

/// Reads the buckets whole; waits for them where they are not there yet.
pub(crate) async fn read(bus: &Bus) -> Kept {
    let mut leases = View::<Lease>::follow(bus, "leases");
    let mut profiles = View::<Profile>::follow(bus, "profiles");
    leases.synced().await;
    profiles.synced().await;
    let mut drains = View::<Drain>::follow(bus, "drains");
    drains.synced().await;
    let kept = Kept {
        leases: leases.entries().values().map(|lease| Lease::clone(lease)).collect(),
        profiles: profiles.entries().values().map(|profile| Profile::clone(profile)).collect(),
        drains: drains.entries().values().map(|drain| Drain::clone(drain)).collect(),
    };
    info!(leases = kept.leases.len(), profiles = kept.profiles.len(), "read what earlier leaders wrote down");
    kept
}

impl Kept {
    /// Takes out leases that ended while nobody led.
    pub(crate) fn take_expired(&mut self, now: Timestamp) -> Vec<Lease> {
        self.leases.extract_if(.., |lease| lease.expires <= now).collect()
    }

    /// Keeps profiles of models as they are run now: measurements of another configuration do not count.
    pub(crate) fn keep_fitting(&mut self, config: impl Fn(&ModelId) -> Option<String>) {
        self.profiles.retain(|profile| config(&profile.model).is_some_and(|config| config == profile.config));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_has_expired_or_was_measured_of_another_configuration_is_left_out() {
        let lease = |session: &str, expires| Lease {
            session: session.into(),
            model: "m".into(),
            key: None,
            since: Timestamp(1),
            ttl: Duration::from_millis(9),
            expires: Timestamp(expires),
            keep_context: false,
        };
        let profile = |model: &str, config: &str| Profile::new(model.into(), config.into(), "ram".into());
        let mut kept = Kept {
            leases: vec![lease("a", 10), lease("b", 11)],
            profiles: vec![profile("m", "old"), profile("m", "new"), profile("gone", "new")],
            drains: Vec::new(),
        };
        assert_eq!(kept.take_expired(Timestamp(10)), [lease("a", 10)]);
        assert_eq!(kept.leases, [lease("b", 11)]);
        kept.keep_fitting(|model| (model.as_str() == "m").then(|| "new".into()));
        assert_eq!(kept.profiles, [profile("m", "new")]);
    }
}
