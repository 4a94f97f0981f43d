//! When an engine makes room, for whom, and where.

use std::time::Duration;

use berth_placement::{AttemptEnd, Event, JobFacts, Policy, Verdict};
use berth_wire::{EngineFailure, EngineState};

use crate::world::{GIB, World, job, model};

/// Has an engine of `a` started and a job measured on it.
fn serve_one_in_ten_seconds(world: &mut World) {
    world.submit(0, "a");
    world.progress();
    world.wait(Duration::from_secs(10));
    world.settle();
}

/// Has a model asked for again and again, so that it is expected to be asked for again.
fn make_hot(world: &mut World, id: &str, from: u128) {
    for n in from..from + 400 {
        world.submit(n, id);
        world.settle();
        world.wait(Duration::from_millis(250));
    }
}

#[test]
fn a_hot_model_keeps_its_room_until_the_waiting_is_worth_more() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("hot", 6 * GIB, 1), model("b", 6 * GIB, 1)]);
    make_hot(&mut world, "hot", 0);
    let submitted = world.now;
    let late = world.submit(1000, "b");
    assert!(world.in_state(EngineState::Stopping).is_empty(), "not at once: hot is asked for all the time");
    let why = world.state.explain(late, world.now).unwrap();
    assert!(why.why.contains("hot") && why.places[0].loss_s > 1.0, "{why:?}");
    while world.in_state(EngineState::Stopping).is_empty() {
        let next = world.state.next_timer().expect("nothing would look again");
        world.now = world.now.max(next);
        world.tell(Event::Timer);
        assert!(
            world.now.since(submitted) < Duration::from_secs(300),
            "the limit of waiting is not needed here"
        );
    }
    assert!(world.now > submitted);
    world.settle();
    assert!(world.verdicts.contains_key(&late));
}

#[test]
fn a_model_that_was_never_started_is_taken_to_start_as_fast_as_others() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", 6 * GIB, 1), model("b", 6 * GIB, 1)]);
    world.submit(0, "a");
    world.settle();
    let job = world.submit(1, "b");
    let told = world.state.explain(job, world.now).unwrap();
    assert!(told.why.contains("memory is being freed"), "{told:?}");
    world.settle();
    let next = world.submit(2, "a");
    assert!(world.state.explain(next, world.now).unwrap().places.iter().all(|place| place.start_s <= 3.0));
}

#[test]
fn of_two_idle_models_the_one_that_is_asked_for_less_makes_room() {
    let models = vec![model("hot", 4 * GIB, 1), model("cool", 4 * GIB, 1), model("c", 4 * GIB, 1)];
    let mut world = World::new(&[(1, 8 * GIB)], models);
    make_hot(&mut world, "hot", 0);
    // Used last, but seldom: the least recently used rule would spare it.
    world.submit(900, "cool");
    world.settle();
    world.submit(901, "c");
    world.settle();
    assert!(world.engine_of("hot").is_some());
    assert!(world.engine_of("cool").is_none());
}

#[test]
fn the_set_that_loses_least_makes_room_not_the_first_that_does() {
    let models = vec![
        model("hot", 5 * GIB, 1),
        model("x", 2 * GIB, 1),
        model("y", 3 * GIB, 1),
        model("new", 5 * GIB, 1),
    ];
    let mut world = World::new(&[(1, 10 * GIB)], models);
    world.submit(800, "x");
    world.submit(801, "y");
    world.settle();
    make_hot(&mut world, "hot", 0);
    world.submit(900, "new");
    world.settle();
    assert!(world.engine_of("hot").is_some(), "two that are hardly used go instead");
    assert!(world.engine_of("x").is_none() && world.engine_of("y").is_none());
}

#[test]
fn a_long_queue_gets_a_second_engine_where_that_is_idle_and_is_balanced_over_both() {
    let mut world = World::new(&[(1, 8 * GIB), (1, 8 * GIB)], vec![model("a", 8 * GIB, 2)]);
    serve_one_in_ten_seconds(&mut world);
    for n in 1..=8 {
        world.submit(n, "a");
    }
    assert_eq!(world.started.len(), 2, "jobs take 10 s, so 6 that wait take 30 s on two slots");
    let loading = world.in_state(EngineState::Starting)[0];
    world.ready(loading);
    let counts: Vec<_> = world.engines.values().map(|engine| engine.running.len()).collect();
    assert_eq!(counts, [2, 2]);
}

#[test]
fn an_engine_whose_model_has_slots_to_spare_elsewhere_makes_room_at_once() {
    let models = vec![model("a", 8 * GIB, 2), model("b", 8 * GIB, 1)];
    let mut world = World::new(&[(1, 8 * GIB), (1, 8 * GIB)], models);
    serve_one_in_ten_seconds(&mut world);
    for n in 1..=8 {
        world.submit(n, "a");
    }
    world.settle();
    make_hot(&mut world, "a", 10);
    assert_eq!(world.in_state(EngineState::Ready).len(), 2, "as many requests would keep one engine alone");
    world.submit(1000, "b");
    assert_eq!(world.in_state(EngineState::Stopping).len(), 1);
}

#[test]
fn a_second_engine_of_a_model_is_not_put_beside_the_first() {
    let mut world = World::new(&[(1, 64 * GIB)], vec![model("a", GIB, 2)]);
    serve_one_in_ten_seconds(&mut world);
    for n in 1..=20 {
        world.submit(n, "a");
    }
    assert_eq!(world.started.len(), 1, "they would share one accelerator's compute");
}

#[test]
fn a_model_has_no_more_engines_than_it_is_allowed() {
    let mut single = model("a", 8 * GIB, 2);
    single.max_replicas = Some(1);
    let mut world = World::new(&[(1, 8 * GIB), (1, 8 * GIB)], vec![single]);
    serve_one_in_ten_seconds(&mut world);
    for n in 1..=20 {
        world.submit(n, "a");
    }
    assert_eq!(world.started.len(), 1);
}

#[test]
fn a_session_goes_where_it_was_served_last_if_slots_are_equal() {
    let mut world = World::new(&[(1, 8 * GIB), (1, 8 * GIB)], vec![model("a", 8 * GIB, 2)]);
    serve_one_in_ten_seconds(&mut world);
    for n in 1..=8 {
        world.submit(n, "a");
    }
    world.settle();
    assert_eq!(world.in_state(EngineState::Ready).len(), 2);
    let send = |world: &mut World, n: u128| {
        let facts = JobFacts { arrival: world.now, session: Some("s".into()), ..job(n, "a") };
        world.send(facts);
        world.running().into_iter().find(|(job, ..)| job.0 == n).unwrap().2
    };
    let first = send(&mut world, 20);
    world.settle();
    let other = world.in_state(EngineState::Ready).into_iter().find(|id| *id != first).unwrap();
    // Make the other one the choice by number for those without a session.
    for n in 21..25 {
        assert_eq!(send(&mut world, n), first);
        world.settle();
    }
    assert_ne!(first, other);
}

#[test]
fn a_start_that_fails_on_one_host_is_tried_on_the_next_at_once() {
    let mut world = World::new(&[(1, 8 * GIB), (1, 8 * GIB)], vec![model("a", 4 * GIB, 1)]);
    let job = world.submit(0, "a");
    let first = world.started[0].1.clone();
    let engine = world.in_state(EngineState::Starting)[0];
    let failure = EngineFailure { message: "no such image".into(), permanent: true, was_ready: false };
    world.gone(engine, Some(failure.clone()));
    assert_eq!(world.started.len(), 2);
    assert_ne!(world.started[1].1, first);
    let engine = world.in_state(EngineState::Starting)[0];
    world.gone(engine, Some(failure));
    let Verdict::Failed { error, .. } = &world.verdicts[&job] else { panic!("no host is left to try") };
    assert!(error.message.contains("no such image"));
}

#[test]
fn a_job_that_cannot_start_before_its_deadline_is_refused_at_once() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", 4 * GIB, 1)]);
    // Its start and its jobs are measured first.
    world.submit(0, "a");
    world.progress();
    world.wait(Duration::from_secs(20));
    world.settle();
    for n in 1..=10 {
        world.submit(n, "a");
    }
    let facts = |world: &World, n, seconds| JobFacts {
        arrival: world.now,
        deadline: Some(world.now.plus(Duration::from_secs(seconds))),
        ..job(n, "a")
    };
    let soon = facts(&world, 20, 5);
    let late = facts(&world, 21, 1000);
    let (soon, late) = (world.send(soon), world.send(late));
    let Verdict::Failed { error, .. } = &world.verdicts[&soon] else { panic!("taken") };
    assert_eq!(error.code, "deadline_unmeetable");
    assert!(!world.verdicts.contains_key(&late));
}

#[test]
fn models_past_the_limit_are_loaded_in_the_order_of_their_limits() {
    let names = ["keeps", "x", "y", "z"];
    let models = names.iter().map(|id| model(id, 6 * GIB, 1)).collect();
    let policy = Policy { aged_factor: 0.0, ..Policy::default() };
    let mut world = World::with(policy, &[(1, 8 * GIB)], models);
    world.submit(0, "keeps");
    world.progress();
    // z has many who wait, and x only one, but x came first.
    for (n, id) in ["x", "y", "z", "z", "z", "z"].iter().enumerate() {
        world.wait(Duration::from_secs(1));
        world.submit(10 + n as u128, id);
    }
    world.wait(Duration::from_secs(400));
    let (job, attempt, engine) = world.running()[0];
    world.finish(job, attempt, engine, AttemptEnd::Completed);
    world.run_out();
    let order: Vec<_> = world.started.iter().map(|(model, _)| model.as_str()).collect();
    assert_eq!(order, ["keeps", "x", "y", "z"]);
}

#[test]
fn one_gang_at_a_time_takes_a_host_apart() {
    let gang = |id: &str| {
        let mut gang = model(id, 12 * GIB, 1);
        gang.accelerators = 2;
        gang
    };
    let models = vec![gang("g"), gang("h"), model("a", 6 * GIB, 1), model("b", 6 * GIB, 1)];
    let mut world = World::new(&[(4, 8 * GIB)], models);
    for (n, id) in ["a", "b"].iter().enumerate() {
        world.submit(n as u128, id);
    }
    world.settle();
    world.submit(10, "g");
    world.submit(11, "h");
    world.run_out();
    assert!(world.verdicts.values().all(|verdict| *verdict == Verdict::Completed));
}

#[test]
fn while_one_gang_waits_for_its_part_of_a_host_no_other_has_more_of_it_drained() {
    let mut models: Vec<_> = ["a", "b", "c", "d"].iter().map(|id| model(id, 6 * GIB, 1)).collect();
    for id in ["g", "h"] {
        let mut gang = model(id, 12 * GIB, 1);
        gang.accelerators = 2;
        models.push(gang);
    }
    let mut world = World::new(&[(4, 8 * GIB)], models);
    for (n, id) in ["a", "b", "c", "d"].iter().enumerate() {
        world.submit(n as u128, id);
    }
    for _ in 0..4 {
        world.ready(world.in_state(EngineState::Starting)[0]);
    }
    assert_eq!(world.running().len(), 4);
    world.submit(10, "g");
    world.submit(11, "h");
    for _ in 0..400 {
        world.wait(Duration::from_secs(1));
    }
    let drained = world.engines.keys().filter(|id| world.state.is_draining(**id)).count();
    assert_eq!(drained, 2, "the other two serve on until the first gang has its place");
    world.run_out();
    assert!(world.verdicts.values().all(|verdict| *verdict == Verdict::Completed));
}

#[test]
fn room_that_is_being_freed_is_waited_for_and_nothing_more_evicted() {
    let mut leaves = model("leaves", 4 * GIB, 1);
    leaves.idle_ttl = Some(Duration::from_secs(10));
    let models = vec![leaves, model("stays", 4 * GIB, 1), model("new", 4 * GIB, 1)];
    let mut world = World::new(&[(1, 8 * GIB)], models);
    world.submit(0, "leaves");
    world.submit(1, "stays");
    world.settle();
    world.wait(Duration::from_secs(11));
    assert_eq!(world.in_state(EngineState::Stopping).len(), 1);
    let job = world.submit(2, "new");
    world.settle();
    assert_eq!(world.verdicts[&job], Verdict::Completed);
    assert!(world.engine_of("stays").is_some());
}

#[test]
fn what_a_leader_measured_is_known_to_the_next_one_and_changes_what_it_sets_aside() {
    let mut world = World::with(Policy::default(), &[(1, 8 * GIB)], vec![model("a", 6 * GIB, 1)]);
    world.submit(0, "a");
    world.settle();
    let mut profile = world.learned.last().cloned().expect("a start was measured");
    assert_eq!(profile.first_start, Some(Duration::from_secs(3)));
    profile.peak_memory = Some(2 * GIB);
    let mut next = World::with(Policy::default(), &[(1, 8 * GIB)], vec![model("a", 6 * GIB, 1)]);
    next.tell(Event::Profiles(vec![profile.clone()]));
    let job = next.submit(1, "a");
    let told = next.state.explain(job, next.now).unwrap();
    assert_eq!(told.eta_s, Some(3.0), "{told:?}");
    let taken = next.engines.values().next().unwrap().reservations[0].bytes;
    assert!((2 * GIB..3 * GIB).contains(&taken), "what was measured and a twentieth, not the 6 GiB declared");
    // Measured with another configuration, it says nothing.
    let mut other = World::with(Policy::default(), &[(1, 8 * GIB)], vec![model("a", 6 * GIB, 1)]);
    profile.config = "other".into();
    other.tell(Event::Profiles(vec![profile]));
    other.submit(1, "a");
    assert_eq!(other.engines.values().next().unwrap().reservations[0].bytes, 6 * GIB);
}

#[test]
fn a_busy_engine_makes_room_in_the_end_though_many_models_wait_alike() {
    let names = ["hot", "x", "y", "z"];
    let models = names.iter().map(|id| model(id, 6 * GIB, 1)).collect();
    let mut world = World::new(&[(1, 8 * GIB)], models);
    world.submit(0, "hot");
    world.progress();
    let waiting: Vec<_> = ["x", "y", "z"].iter().zip(1..).map(|(id, n)| world.submit(n, id)).collect();
    // The model in the way never runs out of jobs.
    for n in 10..700 {
        world.submit(n, "hot");
        world.wait(Duration::from_secs(1));
        if let Some((job, attempt, engine)) = world.running().first().copied() {
            world.finish(job, attempt, engine, AttemptEnd::Completed);
        }
        for engine in world.in_state(EngineState::Stopping) {
            world.gone(engine, None);
        }
        for engine in world.in_state(EngineState::Starting) {
            world.ready(engine);
        }
    }
    assert!(waiting.iter().any(|job| world.verdicts.contains_key(job)));
}

#[test]
fn where_its_own_jobs_wait_too_an_engine_serves_for_longer_before_it_makes_room_but_not_for_ever() {
    let names = ["hot", "x", "y"];
    let models = names.iter().map(|id| model(id, 6 * GIB, 1)).collect();
    let policy = Policy { max_wait: Duration::from_secs(60), ..Policy::default() };
    let limit = policy.max_wait.as_secs();
    let mut world = World::with(policy, &[(1, 8 * GIB)], models);
    world.submit(0, "hot");
    world.progress();
    let waiting = [world.submit(1, "x"), world.submit(2, "y")];
    for n in 3..6 {
        world.submit(n, "hot");
    }
    let mut served = None;
    for second in 0..6 * limit {
        // As many come as it can serve: some wait all the time.
        world.submit(u128::from(second) + 10, "hot");
        world.wait(Duration::from_secs(1));
        if let Some((job, attempt, engine)) = world.running().first().copied() {
            world.finish(job, attempt, engine, AttemptEnd::Completed);
        }
        for engine in world.in_state(EngineState::Stopping) {
            world.gone(engine, None);
        }
        for engine in world.in_state(EngineState::Starting) {
            world.ready(engine);
        }
        if waiting.iter().any(|job| world.verdicts.contains_key(job)) {
            served = served.or(Some(second));
        }
    }
    assert!(served.is_some_and(|second| (4 * limit - 5..5 * limit).contains(&second)), "{served:?}");
}
