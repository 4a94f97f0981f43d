//! Random histories of a fleet: every rule holds after every step, and every job ends exactly once.

use std::time::Duration;

use berth_placement::{AttemptEnd, Policy, Refusal};
use berth_wire::{EngineFailure, EngineState, HostId, JobId};
use proptest::prelude::*;

use crate::world::{GIB, World, error, model};

#[derive(Debug, Clone)]
enum Action {
    Submit(u8),
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
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => any::<u8>().prop_map(Action::Submit),
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
    ]
}

fn pick<T: Clone>(from: &[T], n: u8) -> Option<T> {
    (!from.is_empty()).then(|| from[usize::from(n) % from.len()].clone())
}

fn apply(world: &mut World, action: &Action, next: &mut u128) {
    let models: Vec<String> = world.models.keys().map(ToString::to_string).collect();
    match action {
        Action::Submit(n) => {
            *next += 1;
            world.submit(*next, &pick(&models, *n).unwrap());
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
            if let Some((job, attempt, engine)) = pick(&world.running(), *n) {
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
        Action::Wait(ms) => world.wait(Duration::from_millis(u64::from(*ms))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_rule_holds_and_every_job_ends_once(
        actions in prop::collection::vec(action(), 1..150),
        ttl in prop::option::of(1u64..30),
    ) {
        let policy = Policy { idle_ttl: ttl.map(Duration::from_secs), ..Policy::default() };
        let mut gang = model("gang", 8 * GIB, 2);
        gang.accelerators = 2;
        let mut whole = model("whole", 0, 1);
        whole.memory = None;
        let models = vec![
            model("a", 2 * GIB, 1), model("b", 3 * GIB, 2), model("c", 6 * GIB, 1),
            model("huge", 99 * GIB, 1), gang, whole,
        ];
        let mut world = World::with(policy, &[(1, 8 * GIB), (2, 6 * GIB)], models);
        let mut next = 0;
        for action in &actions {
            apply(&mut world, action, &mut next);
        }
        for host in world.down.clone() {
            world.join(&host);
        }
        world.run_out();
        prop_assert_eq!(world.verdicts.len(), world.jobs.len());
    }
}
