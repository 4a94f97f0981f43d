//! Models of servers that somebody else runs.

use berth_placement::{Effect, Event, HostFacts, ModelNeeds, Policy, State, step};
use berth_wire::{
    Accelerator, AcceleratorKind, Driver, EngineFailure, EngineId, EngineState, Epoch, Timestamp,
};

use crate::kit::{GIB, job, model};

fn host() -> HostFacts {
    let accelerator = |n: u32| Accelerator {
        id: format!("gpu{n}").into(),
        kind: AcceleratorKind::Ram,
        name: "test".into(),
        memory: GIB,
        free: None,
        held: None,
        unexplained: None,
    };
    HostFacts {
        id: "h".into(),
        boot: "b".into(),
        accelerators: (0..4).map(accelerator).collect(),
        drivers: vec![Driver::External],
        labels: vec!["external:m".into()],
        draining: false,
        sleep_memory: 0,
        sleep_spare: 0,
    }
}

fn fleet() -> State {
    let needs =
        ModelNeeds { driver: Driver::External, labels: vec!["external:m".into()], ..model("m", 0, 1) };
    let mut state = State::new(Policy::default(), Epoch(1), Timestamp(0));
    let _ = step(&mut state, Event::Catalog(vec![needs]), Timestamp(0));
    let _ = step(&mut state, snapshot(), Timestamp(0));
    state
}

fn snapshot() -> Event {
    Event::HostSnapshot { host: host(), engines: Vec::new(), running: Vec::new() }
}

fn started(effects: &[Effect]) -> Vec<EngineId> {
    let starts = effects.iter().filter_map(|effect| match effect {
        Effect::Start { engine, .. } => Some(*engine),
        _ => None,
    });
    starts.collect()
}

#[test]
fn a_host_that_reports_anew_is_asked_again_at_once() {
    let mut state = fleet();
    let mut now = Timestamp(1);
    let effects = step(&mut state, Event::JobSubmitted(job(1, "m")), now);
    let engine = started(&effects)[0];
    let failure = EngineFailure { message: "it is down".into(), permanent: true, was_ready: false };
    let effects = step(&mut state, Event::StartRefused { engine, failure, silent: false }, now);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::End { .. })), "its job is told");
    now = Timestamp(1000);
    let refused = step(&mut state, Event::JobSubmitted(job(2, "m")), now);
    assert!(started(&refused).is_empty() && refused.iter().any(|e| matches!(e, Effect::End { .. })));
    let _ = step(&mut state, snapshot(), now);
    let effects = step(&mut state, Event::JobSubmitted(job(3, "m")), now);
    assert_eq!(started(&effects).len(), 1, "without waiting for the back-off's end");
}

#[test]
fn a_server_serves_a_model_once_however_many_wait() {
    let mut state = fleet();
    let mut starts = Vec::new();
    for n in 1..200 {
        let effects = step(&mut state, Event::JobSubmitted(job(n, "m")), Timestamp(n as u64 * 100));
        starts.extend(started(&effects));
        if let (1, Some(engine)) = (n, starts.first()) {
            let ready = berth_placement::EngineFacts {
                id: *engine,
                model: "m".into(),
                state: EngineState::Ready,
                reservations: Vec::new(),
                concurrency: 1,
                failure: None,
                start_took: Some(std::time::Duration::from_millis(1)),
                sleep: None,
                peak_memory: None,
            };
            let _ =
                step(&mut state, Event::EngineChanged { host: "h".into(), engine: ready }, Timestamp(100));
        }
    }
    starts.extend(started(&step(&mut state, Event::Timer, Timestamp(1_000_000))));
    assert_eq!(starts.len(), 1, "{starts:?}");
}
