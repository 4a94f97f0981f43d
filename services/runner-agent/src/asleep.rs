//! Engines that sleep: what that takes, who may be put to sleep and woken, and the way there and back.

use std::time::{Duration, Instant};

use berth_config::Config;
use berth_wire::{
    AcceleratorKind, EngineKind, EngineState, Reply, Reservation, SleepCost, SleepEngine, SleepLevel,
    SleepSpec, StartEngine, WakeEngine,
};
use sysinfo::{MemoryRefreshKind, System};
use tracing::info;

use crate::accelerators::Devices;
use crate::cell::EngineCell;
use crate::driver::Instance;
use crate::shared::Shared;
use crate::vllm::Vllm;

/// How long an engine may take to fall asleep: its weights are copied to host RAM.
const FALL: Duration = Duration::from_secs(120);
/// What an engine without its weights is taken to hold until it was measured: its program and its buffers.
const PROGRAM: u64 = 4 << 30;
/// What an engine is taken to keep on a GPU while it sleeps, where another one may count every byte.
const RESIDUE: u64 = 1 << 30;

/// Which of the two it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Asleep,
    Awake,
}

/// RAM for sleepers: as configured, else half of a machine's that computes with GPUs.
pub(crate) fn budget(config: &Config, devices: &Devices) -> u64 {
    let gpus = devices.known().iter().any(|accelerator| accelerator.kind != AcceleratorKind::Ram);
    config.host.sleep_memory.unwrap_or_else(|| {
        if !gpus {
            return 0;
        }
        let mut system = System::new();
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
        limit.min(system.total_memory()) / 2
    })
}

impl Shared {
    /// How an engine is to sleep here, if it is.
    pub(crate) fn sleep_of(&self, start: &StartEngine) -> Option<SleepSpec> {
        // Nobody else speaks of sleep in these words.
        let sleep = start.model.engine.sleep.filter(|_| start.model.engine.kind == EngineKind::Vllm)?;
        (self.sleep_memory > 0).then_some(sleep)
    }

    /// What it takes up asleep: as measured of its model, else as declared, else about as much as its weights, which
    /// are no more than what was set aside for it.
    pub(crate) fn sleep_cost(&self, start: &StartEngine) -> Option<SleepCost> {
        let sleep = self.sleep_of(start)?;
        let measured = self.books.borrow().slept.get(&start.model.id).copied();
        let ram = measured.or(sleep.ram).unwrap_or_else(|| match sleep.level {
            SleepLevel::Ram => start.reservations.iter().map(|reservation| reservation.bytes).sum(),
            SleepLevel::Disk => PROGRAM,
        });
        // Where a model takes what there is, what a sleeper keeps is within what every engine leaves free.
        let gpu = self.devices.on_gpu(&start.reservations);
        let residue = if gpu && start.model.memory.is_some() { RESIDUE } else { 0 };
        Some(SleepCost { ram, residue })
    }
}

/// Has an engine that runs nothing fall asleep. Its gate is closed when this returns.
pub(crate) fn put_to_sleep(shared: &Shared, order: &SleepEngine) -> Result<(), Reply> {
    let cell = find(shared, order.engine)?;
    if cell.turns_to(Turn::Asleep) {
        return Ok(());
    }
    if cell.sleep_cost().is_none() {
        return Err(refused(format!("engine {} cannot sleep", order.engine)));
    }
    if cell.state() != EngineState::Ready {
        return Err(refused(format!("engine {} is {}, not ready", order.engine, cell.state().as_str())));
    }
    // At once, so that a dispatch or an offer right behind this command is refused: one that came to a sleeping
    // engine would wait in it for ever.
    if let Err(serving) = cell.slots.gate(|gate| gate.stop(false)) {
        return Err(refused(format!("engine {} serves {serving} jobs", order.engine)));
    }
    info!(engine = %order.engine, reason = order.reason, "told to put an engine to sleep");
    cell.turn(Turn::Asleep);
    shared.tell_lane(&cell);
    Ok(())
}

/// Has a sleeping engine wake. Its accelerators' memory is taken when this returns.
pub(crate) fn wake_up(shared: &Shared, order: &WakeEngine) -> Result<(), Reply> {
    let cell = find(shared, order.engine)?;
    match cell.state() {
        EngineState::Ready | EngineState::Waking => return Ok(()),
        EngineState::Sleeping => {}
        other => return Err(refused(format!("engine {} is {}, not asleep", order.engine, other.as_str()))),
    }
    let held = shared.books.borrow().reserved();
    let wanted = still_wanted(&cell);
    shared
        .devices
        .check_fit(&wanted, &held.iter())
        .map_err(|why| refused(format!("field `reservations`: {why}")))?;
    info!(engine = %order.engine, "told to wake an engine");
    cell.turn(Turn::Awake);
    shared.tell_engine(&cell);
    Ok(())
}

/// What a sleeping engine needs beside what it kept.
fn still_wanted(cell: &EngineCell) -> Vec<Reservation> {
    let residue = cell.sleep_cost().map_or(0, |cost| cost.residue);
    let rest = |r: &Reservation| Reservation { bytes: r.bytes.saturating_sub(residue), ..r.clone() };
    cell.start.reservations.iter().map(rest).collect()
}

fn find(shared: &Shared, engine: berth_wire::EngineId) -> Result<std::rc::Rc<EngineCell>, Reply> {
    let books = shared.books.borrow();
    let found = books.engines.get(&engine).map(|engine| std::rc::Rc::clone(&engine.cell));
    found.ok_or_else(|| refused(format!("engine {engine} is not on this host")))
}

fn refused(message: String) -> Reply {
    Reply::Refused { message }
}

/// The way to sleep, and back.
pub(crate) struct Night<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) cell: &'a EngineCell,
}

impl Night<'_> {
    fn vllm<'a>(&'a self, endpoint: &'a str) -> Vllm<'a> {
        Vllm { http: &self.shared.http, endpoint }
    }

    fn level(&self) -> SleepLevel {
        self.cell.model().engine.sleep.map_or(SleepLevel::Ram, |sleep| sleep.level)
    }

    /// Puts the engine to sleep, and measures what it takes of RAM then.
    pub(crate) async fn fall_asleep(&self, instance: &mut dyn Instance) -> Result<(), String> {
        let began = Instant::now();
        // Its last answers have ended; what it does of them still is cut off by falling asleep.
        self.vllm(instance.endpoint()).sleep(self.level(), FALL).await?;
        let ram = instance.memory().await;
        if let Some(ram) = ram {
            self.shared.books.borrow_mut().slept.insert(self.cell.model().id.clone(), ram);
        }
        self.cell.set_sleep_cost(self.shared.sleep_cost(&self.cell.start));
        let mib = ram.map(|ram| ram >> 20);
        let took_ms = began.elapsed().as_millis();
        info!(engine = %self.cell.id(), model = %self.cell.model().id, took_ms, ram_mib = mib, "engine asleep");
        Ok(())
    }

    /// Wakes the engine; how long that took.
    pub(crate) async fn wake(&self, instance: &mut dyn Instance) -> Result<Duration, String> {
        let began = Instant::now();
        let limit = self.cell.model().engine.start_timeout;
        let vllm = self.vllm(instance.endpoint());
        vllm.wake(self.level(), limit).await?;
        if self.level() == SleepLevel::Disk {
            // Only the model's own weights are read anew.
            self.cell.adapters.forget(&vllm).await;
        }
        let took = began.elapsed();
        info!(engine = %self.cell.id(), model = %self.cell.model().id, took_ms = took.as_millis(), "engine awake");
        Ok(took)
    }
}

/// How an engine of an earlier run is: a request to one that sleeps would wait for ever.
pub(crate) async fn found(shared: &Shared, start: &StartEngine, endpoint: &str) -> Result<Found, String> {
    if start.model.engine.sleep.is_none() || start.model.engine.kind != EngineKind::Vllm {
        return Ok(Found::Awake { can_sleep: false });
    }
    Ok(match (Vllm { http: &shared.http, endpoint }).is_sleeping().await? {
        None => Found::Awake { can_sleep: false },
        Some(false) => Found::Awake { can_sleep: true },
        Some(true) if shared.sleep_of(start).is_none() => {
            return Err("it sleeps, and this host has no RAM for that any more".into());
        }
        Some(true) => Found::Asleep,
    })
}

/// How an engine of an earlier run was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Awake { can_sleep: bool },
    Asleep,
}

/// What an engine that is to sleep is started with beside its own arguments and environment. Only on GPUs does vLLM
/// take the flag; elsewhere it sleeps without, and keeps its memory.
pub(crate) fn extras(start: &StartEngine, on_gpus: bool) -> (Option<&'static str>, Option<(String, String)>) {
    const FLAG: &str = "--enable-sleep-mode";
    const DEV_MODE: &str = "VLLM_SERVER_DEV_MODE";
    let engine = &start.model.engine;
    let own = engine.command.iter().chain(&engine.args).any(|word| word == FLAG);
    let flag = (on_gpus && !own).then_some(FLAG);
    let named = |entry: &String| entry.split('=').next() == Some(DEV_MODE);
    let env = (!engine.env.iter().any(named)).then(|| (DEV_MODE.to_owned(), "1".to_owned()));
    (flag, env)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(args: &[&str], env: &[&str]) -> StartEngine {
        let text = format!("[[models]]\nid = \"m\"\nengine = \"vllm\"\nargs = {args:?}\nenv = {env:?}\n");
        let model = Config::parse(&text, "test.toml").unwrap().models.remove(0);
        let engine = berth_wire::EngineId::new(berth_wire::Epoch(1), 1);
        StartEngine { epoch: berth_wire::Epoch(1), engine, model, reservations: Vec::new(), boot: None }
    }

    #[test]
    fn an_engine_is_told_that_it_will_sleep_and_only_once() {
        let dev = Some(("VLLM_SERVER_DEV_MODE".to_owned(), "1".to_owned()));
        assert_eq!(extras(&start(&["M"], &[]), true), (Some("--enable-sleep-mode"), dev.clone()));
        assert_eq!(extras(&start(&["M"], &[]), false), (None, dev));
        let own = start(&["M", "--enable-sleep-mode"], &["VLLM_SERVER_DEV_MODE=1"]);
        assert_eq!(extras(&own, true), (None, None));
    }
}
