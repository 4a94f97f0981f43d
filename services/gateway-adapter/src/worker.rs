//! One HTTP worker thread's own parts: its connection, its name on the bus and its demux.

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use berth_actors::{Supervised, supervise};
use berth_bus::{Bodies, Bus, BusError, BusOptions};
use berth_wire::GatewayId;

use crate::adopt;
use crate::demux::{Demux, Listening};
use crate::fleet::Fleet;
use crate::later::Store;

/// Messages that may wait for a worker's demux, beside its output.
const MAILBOX: usize = 1024;

/// What every request on one thread shares.
pub(crate) struct Worker {
    fleet: Arc<Fleet>,
    bus: Bus,
    id: GatewayId,
    demux: Supervised<Demux>,
    listening: Arc<AtomicBool>,
    bodies: tokio::sync::OnceCell<Bodies>,
    later: tokio::sync::OnceCell<Store>,
}

thread_local! {
    /// One for each thread, though the server asks once for each address that it listens on.
    static WORKER: OnceCell<Arc<Worker>> = const { OnceCell::new() };
}

impl Worker {
    /// This thread's worker, which is made on the first call.
    pub(crate) async fn of_this_thread(
        fleet: Arc<Fleet>,
        options: BusOptions,
    ) -> Result<Arc<Self>, BusError> {
        if let Some(worker) = WORKER.with(|cell| cell.get().cloned()) {
            return Ok(worker);
        }
        let worker = Arc::new(Self::start(fleet, options).await?);
        let worker = WORKER.with(|cell| Arc::clone(cell.get_or_init(|| worker)));
        if !worker.fleet().adopts.swap(true, Ordering::AcqRel) {
            actix_rt::spawn(adopt::watch(Arc::clone(&worker)));
        }
        Ok(worker)
    }

    async fn start(fleet: Arc<Fleet>, options: BusOptions) -> Result<Self, BusError> {
        let n = fleet.workers.fetch_add(1, Ordering::Relaxed);
        let id = GatewayId::from(format!("{}-{n}", fleet.id));
        let bus = Bus::connect(&options, &format!("berth-gateway {id}")).await?;
        let listening = Arc::new(AtomicBool::new(false));
        let demux = supervise(&fleet.vitals, &format!("demux-{n}"), MAILBOX, {
            let (bus, id, lanes) = (bus.clone(), id.clone(), Arc::clone(&fleet.lanes));
            let listening = Arc::clone(&listening);
            move |life| Demux::new(life, bus.clone(), id.clone(), Arc::clone(&lanes), Arc::clone(&listening))
        });
        demux.send(Listening).await.map_err(|_| BusError::TimedOut { subject: bus.subjects.out_all(&id) })?;
        fleet.hired(demux.clone(), bus.clone());
        let (bodies, later) = (tokio::sync::OnceCell::new(), tokio::sync::OnceCell::new());
        Ok(Self { fleet, bus, id, demux, listening, bodies, later })
    }

    pub(crate) fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    pub(crate) fn bus(&self) -> &Bus {
        &self.bus
    }

    pub(crate) fn id(&self) -> &GatewayId {
        &self.id
    }

    pub(crate) fn demux(&self) -> &Supervised<Demux> {
        &self.demux
    }

    /// Whether the demux hears output; one that was made anew takes a moment.
    pub(crate) fn is_listening(&self) -> bool {
        self.listening.load(Ordering::Acquire)
    }

    /// Where asynchronous jobs are recorded.
    pub(crate) async fn later(&self) -> Result<&Store, BusError> {
        self.later.get_or_try_init(|| Store::open(&self.bus)).await
    }

    /// Where large bodies wait.
    pub(crate) async fn bodies(&self) -> Result<&Bodies, BusError> {
        self.bodies.get_or_try_init(|| Bodies::open(&self.bus)).await
    }
}
