//! Random histories of a fleet: every rule holds after every step, and every job ends exactly once.

use std::time::Duration;

use berth_placement::{AttemptEnd, Event, JobFacts, Policy, Refusal};
use berth_wire::{Class, EngineFailure, EngineState, HostId, JobId};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::world::{GIB, World, error, job, model};

#[derive(Debug, Clone)]
pub enum Action {
    Submit(u8, u8),
    Cancel(u8),
    Progress(u8),
    EngineReady(u8),
    EngineGone(u8),
    EngineFails(u8, bool),
    EngineDies(u8),
    AttemptFails(u8, bool),
    DispatchRefused(u8, bool),
    HostLost(u8),
    HostJoins(u8),
    Wait(u16),
    FallAsleep(u8),
    Woken(u8),
    SleepRefused(u8),
    WakeRefused(u8),
    Lease(u8, u8, u8),
    Release(u8, Option<u8>),
    Hint(u8, u8, u16),
    Leave(u8),
    Drain(u8, bool),
    Express(u8),
    Snapshot(u8),
    Load(u8, Option<u8>),
    Unload(u8, bool),
    Withdraw(u8),
    Policy(u16),
}

pub fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => any::<(u8, u8)>().prop_map(|(n, who)| Action::Submit(n, who)),
        2 => any::<u8>().prop_map(Action::Cancel),
        8 => any::<u8>().prop_map(Action::Progress),
        4 => any::<u8>().prop_map(Action::EngineReady),
        4 => any::<u8>().prop_map(Action::EngineGone),
        1 => any::<(u8, bool)>().prop_map(|(n, p)| Action::EngineFails(n, p)),
        1 => any::<u8>().prop_map(Action::EngineDies),
        1 => any::<(u8, bool)>().prop_map(|(n, o)| Action::AttemptFails(n, o)),
        1 => any::<(u8, bool)>().prop_map(|(n, b)| Action::DispatchRefused(n, b)),
        1 => any::<u8>().prop_map(Action::HostLost),
        2 => any::<u8>().prop_map(Action::HostJoins),
        3 => (0u16..20_000).prop_map(Action::Wait),
        4 => any::<u8>().prop_map(Action::FallAsleep),
        4 => any::<u8>().prop_map(Action::Woken),
        1 => any::<u8>().prop_map(Action::SleepRefused),
        1 => any::<u8>().prop_map(Action::WakeRefused),
        1 => any::<(u8, u8, u8)>().prop_map(|(s, m, t)| Action::Lease(s, m, t)),
        1 => any::<(u8, Option<u8>)>().prop_map(|(s, m)| Action::Release(s, m)),
        1 => any::<(u8, u8, u16)>().prop_map(|(s, m, t)| Action::Hint(s, m, t)),
        1 => any::<u8>().prop_map(Action::Leave),
        1 => any::<(u8, bool)>().prop_map(|(n, on)| Action::Drain(n, on)),
        1 => any::<u8>().prop_map(Action::Express),
        1 => any::<u8>().prop_map(Action::Snapshot),
        1 => any::<(u8, Option<u8>)>().prop_map(|(m, h)| Action::Load(m, h)),
        1 => any::<(u8, bool)>().prop_map(|(m, force)| Action::Unload(m, force)),
        1 => any::<u8>().prop_map(Action::Withdraw),
        1 => any::<u16>().prop_map(Action::Policy),
    ]
}

fn pick<T: Clone>(from: &[T], n: u8) -> Option<T> {
    (!from.is_empty()).then(|| from[usize::from(n) % from.len()].clone())
}

pub fn apply(world: &mut World, action: &Action, next: &mut u128) {
    let models: Vec<String> = world.models.keys().map(ToString::to_string).collect();
    match action {
        Action::Submit(n, who) => {
            *next += 1;
            let class = [Class::Interactive, Class::Standard, Class::Batch][usize::from(*who) % 3];
            world.send(JobFacts {
                arrival: world.now,
                session: (who % 4 > 0).then(|| format!("s{}", who % 5).into()),
                key: (who % 2 > 0).then(|| format!("k{}", who % 7).into()),
                deadline: (who % 16 == 0).then(|| world.now.plus(Duration::from_secs(u64::from(*n)))),
                class,
                tokens: u64::from(*who) * 10,
                ..job(*next, &pick(&models, *n).unwrap())
            });
        }
        Action::Cancel(n) => {
            let open: Vec<JobId> =
                world.jobs.iter().filter(|job| !world.verdicts.contains_key(job)).copied().collect();
            if let Some(job) = pick(&open, *n) {
                world.cancel(job);
            }
        }
        Action::Progress(n) => {
            if let Some((job, attempt, engine)) = pick(&world.running(), *n) {
                world.finish(job, attempt, engine, AttemptEnd::Completed);
            }
        }
        Action::EngineReady(n) => {
            if let Some(id) = pick(&world.in_state(EngineState::Starting), *n) {
                world.ready(id);
            }
        }
        Action::EngineGone(n) => {
            if let Some(id) = pick(&world.in_state(EngineState::Stopping), *n) {
                world.gone(id, None);
            }
        }
        Action::EngineFails(n, permanent) => {
            if let Some(id) = pick(&world.in_state(EngineState::Starting), *n) {
                let failure = EngineFailure { message: "x".into(), permanent: *permanent, was_ready: false };
                world.gone(id, Some(failure));
            }
        }
        Action::EngineDies(n) => {
            if let Some(id) = pick(&world.in_state(EngineState::Ready), *n) {
                let failure = EngineFailure { message: "x".into(), permanent: false, was_ready: true };
                world.gone(id, Some(failure));
            }
        }
        Action::AttemptFails(n, output_sent) => {
            if let Some((job, attempt, engine)) = pick(&world.running(), *n) {
                let end = AttemptEnd::Failed { error: error("x"), output_sent: *output_sent };
                world.finish(job, attempt, engine, end);
            }
        }
        Action::DispatchRefused(n, busy) => {
            let dispatched: Vec<_> =
                world.running().into_iter().filter(|(job, ..)| world.jobs.contains(job)).collect();
            if let Some((job, attempt, engine)) = pick(&dispatched, *n) {
                world.engines.get_mut(&engine).unwrap().running.remove(&job);
                let why = if *busy { Refusal::Busy } else { Refusal::Failed("x".into()) };
                world.tell(berth_placement::Event::DispatchRefused { job, attempt, why });
            }
        }
        Action::HostLost(n) => {
            let up: Vec<HostId> =
                world.hosts.keys().filter(|host| !world.down.contains(*host)).cloned().collect();
            if let Some(host) = pick(&up, *n) {
                world.lose(&host);
            }
        }
        Action::HostJoins(n) => {
            let down: Vec<HostId> = world.down.iter().cloned().collect();
            if let Some(host) = pick(&down, *n) {
                world.join(&host);
            }
        }
        Action::FallAsleep(n) => {
            if let Some(id) = pick(&world.falling_asleep(), *n) {
                world.asleep(id);
            }
        }
        Action::Woken(n) => {
            if let Some(id) = pick(&world.in_state(EngineState::Waking), *n) {
                world.ready(id);
            }
        }
        Action::SleepRefused(n) => {
            if let Some(engine) = pick(&world.falling_asleep(), *n) {
                world.engines.get_mut(&engine).unwrap().in_ram = false;
                world.tell(Event::SleepRefused { engine, why: "x".into() });
            }
        }
        Action::WakeRefused(n) => {
            if let Some(engine) = pick(&world.in_state(EngineState::Waking), *n) {
                // It sleeps on, and is stopped then.
                world.engines.get_mut(&engine).unwrap().state = EngineState::Sleeping;
                let failure = EngineFailure { message: "x".into(), permanent: false, was_ready: true };
                world.tell(Event::StartRefused { engine, failure, silent: false });
            }
        }
        Action::Lease(session, model, ttl) => {
            let model = pick(&models, *model).unwrap();
            world.ask_lease(&format!("s{}", session % 5), &model, u64::from(*ttl));
        }
        Action::Release(session, model) => {
            let model = model.and_then(|n| pick(&models, n)).map(|model| model.as_str().into());
            world.tell(Event::LeaseReleased { session: format!("s{}", session % 5).as_str().into(), model });
        }
        Action::Hint(session, model, ms) => {
            let due = world.now.plus(Duration::from_millis(u64::from(*ms) * 3));
            let model = pick(&models, *model).unwrap().as_str().into();
            world.tell(Event::Hint {
                session: format!("s{}", session % 5).as_str().into(),
                model,
                due,
                key: None,
            });
        }
        Action::Load(model, host) => {
            let hosts: Vec<HostId> = world.hosts.keys().cloned().collect();
            let host = host.and_then(|n| pick(&hosts, n));
            world.tell(Event::LoadAsked { model: pick(&models, *model).unwrap().as_str().into(), host });
        }
        Action::Unload(model, force) => {
            let model = pick(&models, *model).unwrap().as_str().into();
            world.tell(Event::UnloadAsked { model, host: None, force: *force });
        }
        Action::Withdraw(session) => {
            let session = format!("s{}", session % 5).as_str().into();
            world.tell(Event::HintWithdrawn { session, model: None });
        }
        Action::Policy(ms) => {
            let idle_ttl = Some(Duration::from_millis(u64::from(*ms) + 100));
            let policy = berth_placement::Policy { idle_ttl, ..berth_placement::Policy::default() };
            world.tell(Event::Policy(Box::new(policy)));
        }
        Action::Drain(n, on) => {
            let hosts: Vec<HostId> = world.hosts.keys().cloned().collect();
            world.drain(pick(&hosts, *n).unwrap().as_str(), *on);
        }
        Action::Leave(n) => {
            let hosts: Vec<HostId> = world.hosts.keys().cloned().collect();
            let host = pick(&hosts, *n).unwrap();
            if !world.draining.remove(&host) {
                world.draining.insert(host.clone());
            }
            if !world.down.contains(&host) {
                world.repeat(&host);
            }
        }
        Action::Snapshot(n) => {
            let up: Vec<HostId> =
                world.hosts.keys().filter(|host| !world.down.contains(*host)).cloned().collect();
            if let Some(host) = pick(&up, *n) {
                world.repeat(&host);
            }
        }
        Action::Express(n) => {
            let free = |e: &crate::world::Engine| {
                e.state == EngineState::Ready && !e.in_ram && (e.running.len() as u32) < e.concurrency
            };
            let ready: Vec<_> = world.engines.iter().filter(|(_, e)| free(e)).map(|(id, _)| *id).collect();
            if let Some(engine) = pick(&ready, *n)
                && !world.state.is_draining(engine)
            {
                *next += 1;
                world.express(JobId(*next), engine);
            }
        }
        Action::Wait(ms) => world.wait(Duration::from_millis(u64::from(*ms))),
    }
}

/// Two hosts, and models that fit together, alone, on two accelerators or not at all.
pub fn fleet(ttl: Option<u64>, ram: (u64, u64)) -> World {
    fleet_under(Policy { idle_ttl: ttl.map(Duration::from_secs), ..Policy::default() }, ram)
}

/// The same as if it were a large one: searched in part, its models seen to a few at a time.
fn as_a_large_one(ttl: Option<u64>, ram: (u64, u64)) -> World {
    let idle_ttl = ttl.map(Duration::from_secs);
    fleet_under(Policy { idle_ttl, searched_whole: 0, ordered_whole: 0, ..Policy::default() }, ram)
}

fn fleet_under(policy: Policy, ram: (u64, u64)) -> World {
    let mut gang = model("gang", 8 * GIB, 2);
    gang.accelerators = 2;
    let mut whole = model("whole", 0, 1);
    whole.memory = None;
    let models = vec![
        model("a", 2 * GIB, 1),
        model("b", 3 * GIB, 2),
        model("c", 6 * GIB, 1),
        model("huge", 99 * GIB, 1),
        gang,
        whole,
    ];
    World::with_ram(policy, &[(1, 8 * GIB), (2, 6 * GIB)], models, ram)
}

/// Everything that is down comes back, and every job is let run to its end.
fn come_to_rest(world: &mut World) {
    world.draining.clear();
    for host in world.hosts.keys().cloned().collect::<Vec<_>>() {
        world.drain(host.as_str(), false);
    }
    for host in world.hosts.keys().cloned().collect::<Vec<_>>() {
        if world.down.contains(&host) {
            world.join(&host);
        } else {
            world.repeat(&host);
        }
    }
    world.run_out();
}

/// So many events in all, in histories of a thousand; `BERTH_SOAK_EVENTS=1000000` for a long one.
#[test]
fn no_rule_breaks_in_a_long_run() {
    #[expect(clippy::disallowed_methods, reason = "a test may be told to run for longer")]
    let wanted: usize =
        std::env::var("BERTH_SOAK_EVENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let mut runner = TestRunner::deterministic();
    let rams = [(0, 0), (7 * GIB, 0), (8 * GIB, 8 * GIB)];
    let mut done = 0;
    for round in 0.. {
        let ttl = (round % 2 == 0).then_some(20);
        let ram = rams[round % 3];
        let mut world = if round % 4 < 2 { fleet(ttl, ram) } else { as_a_large_one(ttl, ram) };
        let mut next = 0;
        for _ in 0..1000 {
            let action = action().new_tree(&mut runner).unwrap().current();
            apply(&mut world, &action, &mut next);
        }
        come_to_rest(&mut world);
        assert_eq!(world.verdicts.len(), world.jobs.len());
        done += world.story_events;
        if done >= wanted {
            break;
        }
    }
    println!("{done} events");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_rule_holds_and_every_job_ends_once(
        actions in prop::collection::vec(action(), 1..150),
        ttl in prop::option::of(1u64..30),
        ram in prop_oneof![Just((0, 0)), Just((7 * GIB, 0)), Just((8 * GIB, 8 * GIB))],
        large in any::<bool>(),
    ) {
        let mut world = if large { as_a_large_one(ttl, ram) } else { fleet(ttl, ram) };
        let mut next = 0;
        for action in &actions {
            apply(&mut world, action, &mut next);
        }
        come_to_rest(&mut world);
        prop_assert_eq!(world.verdicts.len(), world.jobs.len());
    }
}
