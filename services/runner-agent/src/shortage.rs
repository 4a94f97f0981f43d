//! Whether what was promised to an engine is free, before it starts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_wire::{AcceleratorKind, Reservation};

use crate::cell::EngineCell;
use crate::driver::Failure;
use crate::shared::Shared;

/// How long memory that was promised may take to be measured as free.
const MEMORY_WAIT: Duration = Duration::from_secs(15);

/// Memory that was promised and is not free.
struct Shortage {
    reservation: Reservation,
    /// What is, and who has the rest; `None` where the accelerator cannot be read.
    free: Option<(u64, String)>,
}

impl Shortage {
    fn tell(&self) -> String {
        let Reservation { accelerator, bytes } = &self.reservation;
        match &self.free {
            Some((free, who)) => format!(
                "accelerator {accelerator} has only {} MiB free of the {} MiB set aside for this engine; the rest is held by \
                 {who}",
                free >> 20,
                bytes >> 20
            ),
            None => format!(
                "accelerator {accelerator} cannot be read any more: the agent's log says why, the kernel's (`dmesg`) may \
                 say more; it may have to be reset"
            ),
        }
    }
}

/// A GPU's memory may still be held by what was just stopped, or by somebody else. The engine itself holds `kept` of each.
pub(crate) async fn memory_is_free(shared: &Shared, cell: &EngineCell, kept: u64) -> Result<(), Failure> {
    // A server of others sees to its memory itself.
    if cell.model().is_found() {
        return Ok(());
    }
    let began = Instant::now();
    loop {
        let Some(shortage) = shortage(shared, cell, kept).await else { return Ok(()) };
        if began.elapsed() >= MEMORY_WAIT {
            // A model of which nothing is known gets what there is.
            if cell.model().memory.is_none() && shortage.free.is_some() {
                return Ok(());
            }
            return Err(Failure::passing(shortage.tell()));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The first GPU of which less is measured free than was promised, of which the engine holds `kept` already. Drivers may
/// block, so not on this thread.
async fn shortage(shared: &Shared, cell: &EngineCell, kept: u64) -> Option<Shortage> {
    let (devices, claims) = (Arc::clone(&shared.devices), shared.claims());
    let reservations = cell.start.reservations.clone();
    let looked = tokio::task::spawn_blocking(move || {
        reservations.into_iter().find_map(|reservation| {
            if devices.get(&reservation.accelerator)?.kind == AcceleratorKind::Ram {
                return None;
            }
            let free = devices.free(&reservation.accelerator, &claims);
            let wanted = reservation.bytes.saturating_sub(kept);
            let enough = free.as_ref().is_some_and(|(free, _)| *free >= wanted);
            (!enough).then_some(Shortage { reservation, free })
        })
    });
    looked.await.ok().flatten()
}
