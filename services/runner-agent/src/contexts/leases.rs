//! Leases on an engine's model that ask for their session's context to be kept, heard while the engine is there.

use berth_bus::View;
use berth_wire::{Lease, slug};

use crate::cell::EngineCell;
use crate::shared::Shared;

/// Never ends.
pub(crate) async fn hear<T>(shared: &Shared, cell: &EngineCell) -> T {
    if cell.contexts.heeds_leases() {
        let of_model = format!("*.{}", slug::encode(cell.model().id.as_str()));
        let mut leases = View::<Lease>::follow_keys(&shared.bus, "leases", &of_model);
        while let Some(entries) = leases.changed().await {
            let keeping = entries.iter().filter(|(_, lease)| lease.keep_context);
            cell.contexts.heed(keeping.map(|(key, lease)| (key.clone(), lease.key.clone())).collect());
        }
    }
    std::future::pending().await
}
