//! What all actors of an agent share; one thread, so no locks.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use berth_actors::Vitals;
use berth_bus::{Bodies, Bus};
use berth_config::Config;
use berth_telemetry::trace::Tracer;
use berth_wire::{
    Accelerator, Driver as DriverKind, Ended, EngineId, Estimate, HostBeat, HostId, ModelSpec, Snapshot,
    Started,
};
use tokio::sync::Notify;

use crate::accelerators::{Claim, Devices};
use crate::actor::END;
use crate::books::{Books, Engine, now};
use crate::cell::EngineCell;
use crate::docker::DockerDriver;
use crate::driver::Driver;
use crate::external::Externals;
use crate::outbox::Outbox;
use crate::process::ProcessDriver;
use crate::records::Records;

/// The agent.
pub(crate) struct Shared {
    pub(crate) config: Arc<Config>,
    pub(crate) bus: Bus,
    pub(crate) bodies: Bodies,
    pub(crate) http: reqwest::Client,
    pub(crate) tracer: Tracer,
    pub(crate) host: HostId,
    /// Identifies this run.
    pub(crate) boot: String,
    pub(crate) devices: Arc<Devices>,
    /// RAM for engines that sleep.
    pub(crate) sleep_memory: u64,
    /// Drivers that work; Docker's comes late if its engine does.
    pub(crate) drivers: RefCell<Vec<DriverKind>>,
    pub(crate) docker: OnceCell<DockerDriver>,
    pub(crate) process: ProcessDriver,
    pub(crate) external: Externals,
    pub(crate) vitals: Vitals,
    pub(crate) books: RefCell<Books>,
    pub(crate) outbox: RefCell<Outbox>,
    /// Something is in the outbox, or has left it.
    pub(crate) outbox_changed: Notify,
    pub(crate) records: Records,
    pub(crate) draining: Cell<bool>,
    /// Each who reads an engine's log holds one more.
    pub(crate) log_readers: Rc<()>,
    /// The accelerators as last measured.
    pub(crate) measured: RefCell<Vec<Accelerator>>,
    /// What files say of models that do not say what they need.
    pub(crate) estimates: RefCell<Vec<Estimate>>,
    /// The heartbeat should not wait for its time.
    pub(crate) beat_now: Notify,
    /// Commands are heard.
    pub(crate) listening: tokio::sync::watch::Sender<bool>,
}

impl Shared {
    /// What runs engines of this kind, if it works here.
    pub(crate) fn driver(&self, kind: DriverKind) -> Option<&dyn Driver> {
        match kind {
            DriverKind::Docker => self.docker.get().map(|docker| docker as &dyn Driver),
            DriverKind::External => (!self.external.is_empty()).then_some(&self.external as &dyn Driver),
            DriverKind::Process => {
                self.drivers.borrow().contains(&kind).then_some(&self.process as &dyn Driver)
            }
        }
    }

    /// What engines were promised.
    pub(crate) fn claims(&self) -> Vec<Claim> {
        let claim = |engine: &Engine| Claim {
            engine: engine.cell.id(),
            mark: engine.cell.mark(),
            reservations: engine.cell.held().collect(),
            lent: engine.cell.lent(),
        };
        self.books.borrow().engines.values().map(claim).collect()
    }

    /// Tells the leader, and those who read the engines' bucket, how an engine is.
    pub(crate) fn tell_engine(&self, cell: &EngineCell) {
        self.outbox.borrow_mut().push_engine(cell.report());
        self.outbox_changed.notify_waiters();
        let record = (!cell.state().is_gone()).then(|| cell.record(&self.host));
        self.records.put(self.record_key(cell.id()), record);
    }

    /// Tells those who read the engines' bucket how an engine's lane is.
    pub(crate) fn tell_lane(&self, cell: &EngineCell) {
        self.records.put(self.record_key(cell.id()), Some(cell.record(&self.host)));
    }

    /// Tells the leader of a job that was taken by the express lane.
    pub(crate) fn tell_started(&self, started: Started) {
        self.tell(|outbox| outbox.push_started(started));
    }

    /// Wakes the reporter unless it gathers already: on the express lane there is news for each job, twice.
    fn tell(&self, put: impl FnOnce(&mut Outbox)) {
        let mut outbox = self.outbox.borrow_mut();
        let gathers = !outbox.is_empty();
        put(&mut outbox);
        if !gathers || !outbox.may_wait() {
            self.outbox_changed.notify_waiters();
        }
    }

    /// Tells the leader of an attempt's end; `soon` if somebody waits for the slot.
    pub(crate) fn tell_ended(&self, ended: Ended, soon: bool) {
        self.tell(|outbox| {
            outbox.push_ended(ended);
            if soon {
                outbox.hurry();
            }
        });
    }

    pub(crate) fn tell_goodbye(&self) {
        self.outbox.borrow_mut().push_goodbye();
        self.outbox_changed.notify_waiters();
    }

    /// What is to be told is needed now.
    pub(crate) fn hurry(&self) {
        self.outbox.borrow_mut().hurry();
        self.outbox_changed.notify_waiters();
    }

    pub(crate) fn want_snapshot(&self) {
        self.outbox.borrow_mut().want_snapshot();
        self.outbox_changed.notify_waiters();
    }

    /// The key of an engine in its bucket.
    pub(crate) fn record_key(&self, engine: EngineId) -> String {
        format!("{}.{engine}", self.host)
    }

    /// Takes an engine that is gone off the books, and ends its actor.
    pub(crate) fn retire(self: &Rc<Self>, engine: EngineId) {
        if let Some(engine) = self.books.borrow_mut().engines.remove(&engine) {
            actix_rt::spawn(async move { engine.actor.drain(END).await });
        }
    }

    pub(crate) fn beat(&self) -> HostBeat {
        HostBeat {
            host: self.host.clone(),
            boot: self.boot.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            at: now(),
            accelerators: self.measured.borrow().clone(),
            drivers: self.drivers.borrow().clone(),
            labels: self.config.host.labels.clone(),
            running: u32::try_from(self.books.borrow().count_running()).unwrap_or(u32::MAX),
            draining: self.draining.get(),
            sleep_memory: self.sleep_memory,
            sleep_spare: self.config.host.sleep_spare,
        }
    }

    /// All that is true here, with `ended` as what no leader has acknowledged; the outbox numbers it.
    pub(crate) fn snapshot(&self, ended: Vec<Ended>) -> Snapshot {
        let books = self.books.borrow();
        let mut models: Vec<ModelSpec> = Vec::new();
        // A later engine's specification of the same model is the newer one.
        for engine in books.engines.values().rev() {
            let model = engine.cell.model();
            if !models.iter().any(|known| known.id == model.id) {
                models.push(model.clone());
            }
        }
        Snapshot {
            beat: self.beat(),
            engines: books.engines.values().map(|engine| engine.cell.report()).collect(),
            models,
            running: books.running(),
            ended,
            estimates: self.estimates.borrow().clone(),
            found: self.external.found(),
            number: 0,
            upto: 0,
        }
    }

    /// How things stand, for people.
    pub(crate) fn observe(&self) -> serde_json::Value {
        let books = self.books.borrow();
        let engines: Vec<_> =
            books.engines.values().map(|engine| serde_json::json!(engine.cell.record(&self.host))).collect();
        serde_json::json!({
            "epoch": books.epoch(),
            "running": books.count_running(),
            "draining": self.draining.get(),
            "unacknowledged": self.outbox.borrow().len(),
            "engines": engines,
        })
    }
}
