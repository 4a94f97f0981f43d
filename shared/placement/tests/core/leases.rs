//! Leases and hints: what they keep, what they load, and what they do not override.

use std::time::Duration;

use berth_placement::{Event, ModelNeeds, Policy};
use berth_wire::{EngineState, LeaseState};

use crate::world::{GIB, World, job, model};

const HOUR: u64 = 3600;

fn two_that_do_not_fit_together(policy: Policy) -> World {
    World::with(policy, &[(1, 8 * GIB)], vec![model("a", 6 * GIB, 1), model("b", 6 * GIB, 1)])
}

#[test]
fn a_lease_loads_its_model_onto_room_that_is_free() {
    let mut world = two_that_do_not_fit_together(Policy::default());
    world.ask_lease("s", "a", 120);
    let lease = world.state.lease(&"s".into(), &"a".into(), world.now).unwrap();
    assert_eq!(lease.state, LeaseState::Loading);
    world.settle();
    let lease = world.state.lease(&"s".into(), &"a".into(), world.now).unwrap();
    assert_eq!((lease.state, lease.eta_s), (LeaseState::Ready, Some(0.0)));
}

#[test]
fn a_lease_keeps_its_sessions_context_where_that_can_be_done_and_is_refused_where_not() {
    let keeps = ModelNeeds { keeps_context: true, ..model("a", GIB, 1) };
    let mut world = World::new(&[(1, 8 * GIB)], vec![keeps, model("b", GIB, 1)]);
    let ask = |model: &str, keep_context| Event::LeaseAsked {
        session: "s".into(),
        model: model.into(),
        key: None,
        ttl: Duration::from_secs(HOUR),
        keep_context,
    };
    for (said, is) in [(None, false), (Some(true), true), (None, true), (Some(false), false)] {
        world.tell(ask("a", said));
        let lease = world.state.lease(&"s".into(), &"a".into(), world.now).unwrap().lease;
        assert_eq!((lease.keep_context, lease.key), (is, None), "{said:?}");
    }
    world.tell(ask("b", Some(false)));
    assert!(world.refused.is_empty());
    world.tell(ask("b", Some(true)));
    let error = &world.refused[0];
    assert_eq!((error.code.as_str(), error.param.as_deref()), ("invalid_value", Some("keepContext")));
}

#[test]
fn leases_on_models_that_fit_beside_each_other_are_all_loaded() {
    let names = ["a", "b", "c", "d"];
    let models = names.iter().map(|id| model(id, GIB, 1)).collect();
    let mut world = World::new(&[(1, 16 * GIB)], models);
    for id in names {
        world.ask_lease(id, id, 120);
    }
    world.settle();
    assert_eq!(world.started.len(), 4);
}

#[test]
fn a_lease_on_what_can_never_run_is_refused_with_the_reason() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("huge", 99 * GIB, 1)]);
    world.wait(Duration::from_secs(10));
    world.ask_lease("s", "huge", 120);
    assert_eq!(world.refused[0].code, "model_cannot_fit");
    assert!(world.state.leases(world.now).is_empty());
}

#[test]
fn a_hint_of_what_can_never_run_is_refused_as_a_lease_on_it_is() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("huge", 99 * GIB, 1)]);
    world.wait(Duration::from_secs(10));
    for id in ["huge", "nonesuch"] {
        world.ask_lease("s", id, 120);
        let due = world.now.plus(Duration::from_secs(100));
        world.tell(Event::Hint { session: "s".into(), model: id.into(), due, key: None });
    }
    let [lease, hint, unknown, hint_of_unknown] = &world.refused[..] else { panic!("{:?}", world.refused) };
    assert_eq!((lease.code.as_str(), lease), ("model_cannot_fit", hint));
    assert_eq!((unknown.code.as_str(), unknown), ("model_not_found", hint_of_unknown));
    world.wait(Duration::from_secs(100));
    assert!(world.started.is_empty());
}

#[test]
fn a_lease_is_told_to_wait_while_another_leases_model_has_the_room() {
    let mut world = two_that_do_not_fit_together(Policy::default());
    world.ask_lease("s", "a", 120);
    world.settle();
    world.ask_lease("t", "b", 120);
    world.settle();
    assert!(world.engine_of("a").is_some(), "a lease does not push another lease's model out");
    assert_eq!(world.state.lease(&"t".into(), &"b".into(), world.now).unwrap().state, LeaseState::Queued);
    world.tell(Event::LeaseReleased { session: "s".into(), model: None });
    world.settle();
    assert!(world.engine_of("b").is_some(), "the room is free for the next lease");
}

#[test]
fn of_two_leases_that_both_count_the_later_waits_for_room_that_nobody_awaits() {
    let pinned = |id: &str| {
        let mut pinned = model(id, 8 * GIB, 1);
        pinned.pin = true;
        pinned
    };
    let models = vec![pinned("p"), pinned("q"), pinned("r"), model("a", 6 * GIB, 1), model("b", 6 * GIB, 1)];
    let mut world = World::new(&[(4, 8 * GIB)], models);
    world.settle();
    world.ask_lease("s", "a", 120);
    world.settle();
    world.ask_lease("t", "b", 120);
    world.wait(Duration::from_secs(10));
    world.settle();
    assert!(world.engine_of("a").is_some());
    assert_eq!(world.started.len(), 4, "b was not started: {:?}", world.started);
}

#[test]
fn a_lease_makes_its_model_dearer_to_evict_but_does_not_hold_it_for_ever() {
    // A start is known to take 3 s here, so without a lease the job of b would have the room at once.
    let mut world = two_that_do_not_fit_together(Policy { lease_weight: 60.0, ..Policy::default() });
    world.ask_lease("s", "a", HOUR);
    world.settle();
    world.submit(1, "b");
    assert!(world.in_state(EngineState::Stopping).is_empty(), "the lease weighs more than one new job");
    for _ in 0..30 {
        world.wait(Duration::from_secs(2));
    }
    assert!(!world.in_state(EngineState::Stopping).is_empty(), "a job that waits long enough weighs more");
}

#[test]
fn a_job_past_its_limit_overrides_leases_but_not_pins() {
    let policy = Policy { lease_weight: 1e9, ..Policy::default() };
    let mut world = two_that_do_not_fit_together(policy.clone());
    world.ask_lease("s", "a", HOUR);
    world.settle();
    let job = world.submit(1, "b");
    world.wait(Duration::from_secs(299));
    assert!(world.in_state(EngineState::Stopping).is_empty());
    world.wait(Duration::from_secs(2));
    world.settle();
    assert!(world.verdicts.contains_key(&job), "300 s are the limit of waiting");

    let mut pinned = model("a", 6 * GIB, 1);
    pinned.pin = true;
    let mut world = World::with(policy, &[(1, 8 * GIB)], vec![pinned, model("b", 6 * GIB, 1)]);
    world.settle();
    world.submit(1, "b");
    world.wait(Duration::from_secs(1000));
    world.settle();
    assert!(world.engine_of("a").is_some() && world.verdicts.is_empty());
}

#[test]
fn leases_count_on_half_of_the_accelerators_at_most_the_oldest_first() {
    let names = ["a", "b", "c", "d"];
    let models = names.iter().map(|id| model(id, 6 * GIB, 1)).collect();
    let policy = Policy { lease_weight: 1e9, ..Policy::default() };
    let mut world = World::with(policy, &[(4, 8 * GIB)], models);
    for (n, id) in names.iter().enumerate() {
        world.submit(n as u128, id);
        world.settle();
        world.ask_lease(id, id, HOUR);
        world.wait(Duration::from_secs(1));
    }
    let mut others = vec![model("e", 6 * GIB, 1), model("f", 6 * GIB, 1), model("g", 6 * GIB, 1)];
    others.extend(names.iter().map(|id| model(id, 6 * GIB, 1)));
    world.models = others.iter().map(|m| (m.id.clone(), m.clone())).collect();
    world.tell(Event::Catalog(others));
    for (n, id) in ["e", "f", "g"].iter().enumerate() {
        world.submit(10 + n as u128, id);
        world.settle();
        world.wait(Duration::from_secs(60));
        world.settle();
    }
    assert!(world.engine_of("a").is_some() && world.engine_of("b").is_some(), "the two oldest leases hold");
    assert!(world.engine_of("c").is_none() || world.engine_of("d").is_none());
}

#[test]
fn a_request_of_its_session_carries_a_lease_on() {
    let mut world = two_that_do_not_fit_together(Policy::default());
    world.ask_lease("s", "a", 120);
    world.settle();
    for n in 1..4 {
        world.wait(Duration::from_secs(100));
        let facts =
            berth_placement::JobFacts { arrival: world.now, session: Some("s".into()), ..job(n, "a") };
        world.send(facts);
        world.settle();
    }
    let lease = world.state.lease(&"s".into(), &"a".into(), world.now).unwrap();
    assert_eq!(lease.lease.expires, world.now.plus(Duration::from_secs(120)));
    let kept = &world.kept[&("s".into(), "a".into())];
    assert!(lease.lease.expires.since(kept.expires) < Duration::from_secs(30), "what is kept is near enough");
    world.wait(Duration::from_secs(121));
    assert!(world.state.leases(world.now).is_empty() && world.kept.is_empty());
}

#[test]
fn an_idle_limit_does_not_stop_a_model_under_lease_and_does_when_it_ends() {
    let policy = Policy { idle_ttl: Some(Duration::from_secs(60)), ..Policy::default() };
    let mut world = two_that_do_not_fit_together(policy);
    world.ask_lease("s", "a", 300);
    world.settle();
    world.wait(Duration::from_secs(200));
    assert!(world.in_state(EngineState::Stopping).is_empty());
    world.wait(Duration::from_secs(101));
    assert_eq!(world.in_state(EngineState::Stopping).len(), 1);
}

#[test]
fn callers_without_a_key_are_capped_together_as_one_key_is() {
    let policy = Policy { leases_per_key: 2, ..Policy::default() };
    let mut world = two_that_do_not_fit_together(policy);
    for session in ["r", "s", "t"] {
        world.ask_lease(session, "a", HOUR);
    }
    let error = &world.refused[0];
    assert_eq!((world.refused.len(), error.code.as_str()), (1, "too_many_leases"));
    assert!(error.message.contains("without an API key hold 2 leases"), "{}", error.message);
    assert!(error.message.contains("leases_per_key"), "{}", error.message);
    let ttl = Duration::from_secs(60);
    let (session, model, key) = ("t".into(), "a".into(), Some("k".into()));
    world.tell(Event::LeaseAsked { session, model, key, ttl, keep_context: None });
    world.tell(Event::LeaseReleased { session: "r".into(), model: None });
    world.ask_lease("u", "a", HOUR);
    assert_eq!(world.refused.len(), 1, "a key is another caller, and what is released is free");
}

#[test]
fn a_hint_too_many_is_refused_with_the_number() {
    let policy = Policy { hints_per_session: 2, ..Policy::default() };
    let models = ["a", "b", "c"].map(|id| model(id, GIB, 1)).to_vec();
    let mut world = World::with(policy, &[(1, 8 * GIB)], models);
    let due = world.now.plus(Duration::from_secs(100));
    for id in ["a", "a", "b", "c"] {
        world.tell(Event::Hint { session: "s".into(), model: id.into(), due, key: None });
    }
    let [error] = &world.refused[..] else { panic!("{:?}", world.refused) };
    assert_eq!(error.code, "too_many_hints");
    assert!(error.message.contains("2 hints") && error.retry_after.is_some(), "{error:?}");
}

#[test]
fn leases_are_capped_for_a_session() {
    let policy = Policy { leases_per_session: 1, ..Policy::default() };
    let mut world = two_that_do_not_fit_together(policy);
    world.ask_lease("s", "a", HOUR);
    world.ask_lease("s", "a", 10);
    world.ask_lease("s", "b", 10);
    assert_eq!(world.refused.len(), 1, "renewing is no second lease");
    assert_eq!(world.refused[0].code, "too_many_leases");
    world.ask_lease("t", "nonesuch", 10);
    assert_eq!(world.refused[1].code, "model_not_found");
}

#[test]
fn a_lease_that_is_to_last_too_long_is_refused_with_the_ceiling_and_not_cut() {
    let policy = Policy { lease_ceiling: Duration::from_secs(1800), ..Policy::default() };
    let mut world = two_that_do_not_fit_together(policy);
    for ttl in [1801, HOUR, 0] {
        world.ask_lease("s", "a", ttl);
        let error = world.refused.pop().expect("it is refused");
        assert_eq!((error.code.as_str(), error.param.as_deref()), ("invalid_value", Some("ttlSeconds")));
        assert!(
            error.message.contains("1 to 1800 s") && error.message.contains(&format!("{ttl} s were asked"))
        );
        assert!(world.state.leases(world.now).is_empty(), "{ttl}");
    }
    world.ask_lease("s", "a", 1800);
    let before = world.state.leases(world.now);
    assert_eq!(before[0].lease.expires, world.now.plus(Duration::from_secs(1800)));
    world.ask_lease("s", "a", 1801);
    assert_eq!(
        (world.refused.len(), world.state.leases(world.now)),
        (1, before),
        "what is held stays as it is"
    );
}

#[test]
fn leases_outlive_a_change_of_leaders() {
    let mut world = two_that_do_not_fit_together(Policy::default());
    world.ask_lease("s", "a", 120);
    let kept: Vec<_> = world.kept.values().cloned().collect();
    let mut next = two_that_do_not_fit_together(Policy::default());
    next.kept = world.kept.clone();
    next.tell(Event::LeasesRestored(kept));
    assert_eq!(next.state.leases(next.now).len(), 1);
    next.settle();
    assert!(next.engine_of("a").is_some());
    next.wait(Duration::from_secs(120));
    assert!(next.state.leases(next.now).is_empty(), "it runs out when it would have");
}

#[test]
fn a_hint_has_the_model_ready_when_it_is_needed_and_no_earlier_than_that() {
    let mut world = two_that_do_not_fit_together(Policy::default());
    let due = world.now.plus(Duration::from_secs(100));
    world.tell(Event::Hint { session: "s".into(), model: "a".into(), due, key: None });
    world.wait(Duration::from_secs(60));
    assert!(world.started.is_empty(), "a start is taken to need 30 s");
    world.wait(Duration::from_secs(11));
    assert_eq!(world.started.len(), 1);
    world.settle();
    // Nobody came: it is forgotten, and the room can be had for one job.
    world.wait(Duration::from_secs(100));
    let job = world.submit(1, "b");
    world.settle();
    assert!(world.verdicts.contains_key(&job));
}

/// `b` is in use: a request every so many seconds, answered within one; a start takes 10 s. How often each of the two
/// models was started.
fn starts_while_b_is_used(world: &mut World, every: u64) -> [usize; 2] {
    for n in 0..40 {
        let session = Some("t".into());
        world.send(berth_placement::JobFacts { arrival: world.now, session, ..job(n, "b") });
        for _ in 0..every {
            world.wait(Duration::from_secs(1));
            for id in world.in_state(EngineState::Stopping) {
                world.gone(id, None);
            }
            for id in world.in_state(EngineState::Starting) {
                world.wait(Duration::from_secs(10));
                world.ready(id);
            }
            for (job, attempt, engine) in world.running() {
                world.finish(job, attempt, engine, berth_placement::AttemptEnd::Completed);
            }
        }
    }
    ["a", "b"].map(|id| world.started.iter().filter(|(model, _)| model.as_str() == id).count())
}

#[test]
fn a_lease_does_not_start_its_idle_model_in_place_of_one_that_is_in_use() {
    for (every, b_is_leased) in [(5, true), (60, true), (5, false), (60, false), (90, false)] {
        let policy = Policy { lease_ceiling: Duration::from_secs(10 * HOUR), ..Policy::default() };
        let mut world = two_that_do_not_fit_together(policy);
        world.ask_lease("s", "a", 10 * HOUR);
        world.settle();
        if b_is_leased {
            world.ask_lease("t", "b", 10 * HOUR);
        }
        let starts = starts_while_b_is_used(&mut world, every);
        assert_eq!(starts, [1, 1], "every {every} s, leased: {b_is_leased}");
    }
}

#[test]
fn a_lease_has_its_model_back_once_the_one_in_its_place_is_no_longer_used() {
    let mut world = two_that_do_not_fit_together(Policy::default());
    world.ask_lease("s", "a", HOUR);
    world.settle();
    starts_while_b_is_used(&mut world, 5);
    world.wait(Duration::from_secs(110));
    world.settle();
    assert!(world.engine_of("b").is_some(), "it was used two minutes ago");
    while world.engine_of("a").is_none() {
        let due = world.state.next_timer().expect("it is looked at again");
        world.wait(due.since(world.now));
        world.settle();
    }
    assert!(world.engine_of("b").is_none());
}
