//! What of `[scheduler]` is the fleet's and not one scheduler's own.

use berth_wire::PolicySettings;

use crate::settings::SchedulerConfig;

impl SchedulerConfig {
    /// What every leader follows.
    #[must_use]
    pub fn policy(&self) -> PolicySettings {
        PolicySettings {
            idle_ttl: self.idle_ttl,
            asleep_ttl: self.asleep_ttl,
            max_wait: self.max_wait,
            queue_limit: self.queue_limit,
            model_queue_limit: self.model_queue_limit,
            key_queue_limit: self.key_queue_limit,
            lease_ceiling: self.lease_ceiling,
            leases_per_session: self.leases_per_session,
            leases_per_key: self.leases_per_key,
        }
    }

    /// The same scheduler under the fleet's policy.
    #[must_use]
    pub fn under(&self, policy: &PolicySettings) -> Self {
        Self {
            idle_ttl: policy.idle_ttl,
            asleep_ttl: policy.asleep_ttl,
            max_wait: policy.max_wait,
            queue_limit: policy.queue_limit,
            model_queue_limit: policy.model_queue_limit,
            key_queue_limit: policy.key_queue_limit,
            lease_ceiling: policy.lease_ceiling,
            leases_per_session: policy.leases_per_session,
            leases_per_key: policy.leases_per_key,
            host_timeout: self.host_timeout,
            metrics_listen: self.metrics_listen,
            record: self.record.clone(),
        }
    }
}
