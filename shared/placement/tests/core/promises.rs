//! What the policy promises, one promise a test.

use std::time::Duration;

use berth_placement::{AttemptEnd, Event, Policy, Verdict};
use berth_wire::{EngineFailure, EngineState, JobId};

use crate::world::{GIB, World, error, model};

#[test]
fn a_cold_model_is_started_once_for_all_who_wait() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", 4 * GIB, 4)]);
    for n in 0..20 {
        world.submit(n, "a");
    }
    world.run_out();
    assert_eq!(world.started.len(), 1);
    assert!(world.verdicts.values().all(|v| *v == Verdict::Completed));
}

#[test]
fn two_models_that_do_not_fit_together_take_turns() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", 6 * GIB, 1), model("b", 6 * GIB, 1)]);
    for n in 0..10 {
        world.submit(n, if n % 2 == 0 { "a" } else { "b" });
    }
    world.run_out();
    assert!(world.verdicts.values().all(|v| *v == Verdict::Completed));
    assert_eq!(world.started.len(), 2, "each is loaded once: the queue of a loaded model is served first");
}

#[test]
fn the_least_recently_used_idle_engine_is_evicted() {
    let models = vec![model("a", 4 * GIB, 1), model("b", 4 * GIB, 1), model("c", 4 * GIB, 1)];
    let mut world = World::new(&[(1, 8 * GIB)], models);
    for (n, id) in ["a", "b", "a"].into_iter().enumerate() {
        world.wait(Duration::from_secs(1));
        world.submit(n as u128, id);
        world.run_out();
    }
    world.submit(9, "c");
    world.run_out();
    assert!(world.engine_of("a").is_some(), "a was used after b");
    assert!(world.engine_of("b").is_none());
}

#[test]
fn no_more_engines_are_evicted_than_the_room_needs() {
    let models = vec![model("small", 2 * GIB, 1), model("large", 6 * GIB, 1), model("c", 5 * GIB, 1)];
    let mut world = World::new(&[(1, 8 * GIB)], models);
    for (n, id) in ["small", "large"].into_iter().enumerate() {
        world.wait(Duration::from_secs(1));
        world.submit(n as u128, id);
        world.run_out();
    }
    world.submit(9, "c");
    world.run_out();
    assert!(world.engine_of("small").is_some(), "evicting the large one alone makes enough room");
}

#[test]
fn a_busy_engine_is_not_stopped_and_not_starved_for() {
    let models = vec![model("a", 6 * GIB, 1), model("b", 6 * GIB, 1)];
    let mut world = World::new(&[(1, 8 * GIB)], models);
    world.submit(0, "a");
    world.progress();
    assert_eq!(world.running().len(), 1);
    world.submit(1, "b");
    // The model in the way stays busy for ever: a new job arrives before each one ends.
    for n in 2..400 {
        world.submit(n, "a");
        world.wait(Duration::from_secs(1));
        if let Some((job, attempt, engine)) = world.running().first() {
            world.finish(*job, *attempt, *engine, AttemptEnd::Completed);
        }
        while !world.in_state(EngineState::Stopping).is_empty()
            || !world.in_state(EngineState::Starting).is_empty()
        {
            world.progress();
        }
    }
    assert!(world.verdicts.contains_key(&JobId(1)) || world.running().iter().any(|(j, ..)| *j == JobId(1)));
}

#[test]
fn a_pinned_model_is_started_unasked_and_never_evicted() {
    let mut pinned = model("p", 6 * GIB, 1);
    pinned.pin = true;
    let policy = Policy { idle_ttl: Some(Duration::from_secs(1)), ..Policy::default() };
    let mut world = World::with(policy, &[(1, 8 * GIB)], vec![pinned, model("b", 6 * GIB, 1)]);
    world.progress();
    let engine = world.engine_of("p").expect("started without a job");
    let job = world.submit(1, "b");
    for _ in 0..100 {
        world.wait(Duration::from_secs(10));
        world.progress();
    }
    assert_eq!(world.engine_of("p"), Some(engine));
    assert!(!world.verdicts.contains_key(&job), "it waits; the pin may be lifted");
}

#[test]
fn an_idle_engine_is_stopped_after_its_idle_ttl() {
    let mut short = model("a", GIB, 1);
    short.idle_ttl = Some(Duration::from_secs(60));
    let mut world = World::new(&[(1, 8 * GIB)], vec![short]);
    world.submit(0, "a");
    world.run_out();
    world.wait(Duration::from_secs(59));
    assert_eq!(world.in_state(EngineState::Ready).len(), 1);
    world.wait(Duration::from_secs(1));
    assert_eq!(world.in_state(EngineState::Stopping).len(), 1);
}

#[test]
fn a_model_that_can_never_fit_is_refused_with_the_numbers() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("huge", 40 * GIB, 1)]);
    world.wait(Duration::from_secs(6));
    let job = world.submit(0, "huge");
    let Some(Verdict::Failed { error, .. }) = world.verdicts.get(&job) else { panic!("not refused") };
    assert_eq!(error.code, "model_cannot_fit");
    let shown = world.state.model_facts(&"huge".into(), world.now).unwrap().error;
    assert_eq!(shown.as_ref(), Some(error), "it is shown to whoever looks");
    assert!(error.message.contains("needs 40.0 GiB of memory"), "{}", error.message);
    assert!(error.message.contains("8.0 GiB"), "{}", error.message);
}

#[test]
fn jobs_wait_for_hosts_that_have_yet_to_join() {
    let mut world = World::new(&[], vec![model("a", GIB, 1)]);
    let job = world.submit(0, "a");
    world.wait(Duration::from_secs(60));
    assert!(world.state.knows(job));
    world.hosts.insert("late".into(), (1, 8 * GIB));
    world.join(&"late".into());
    world.run_out();
    assert_eq!(world.verdicts[&job], Verdict::Completed);
}

#[test]
fn jobs_wait_for_a_host_whose_agent_is_exchanged() {
    let mut world = World::new(&[(1, 8 * GIB), (1, GIB)], vec![model("a", 6 * GIB, 1)]);
    world.wait(Duration::from_secs(6));
    let host = world.hosts.iter().find(|(_, (_, memory))| *memory > GIB).map(|(id, _)| id.clone()).unwrap();
    world.draining.insert(host.clone());
    world.repeat(&host);
    let job = world.submit(0, "a");
    assert!(world.state.knows(job), "it is not refused for good while its host is about to be back");
    world.draining.remove(&host);
    world.join(&host);
    world.run_out();
    assert_eq!(world.verdicts[&job], Verdict::Completed);
}

#[test]
fn a_start_that_fails_for_good_is_told_with_its_reason_and_not_looped() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", GIB, 1)]);
    let job = world.submit(0, "a");
    let failure = EngineFailure { message: "image x is missing".into(), permanent: true, was_ready: false };
    world.gone(world.in_state(EngineState::Starting)[0], Some(failure));
    let Verdict::Failed { error, told: false } = &world.verdicts[&job] else { panic!("not told") };
    assert!(error.message.contains("image x is missing"));
    assert!(error.retry_after.is_some());
    // Within the pause the answer comes at once; after it, the model is tried again.
    let soon = world.submit(1, "a");
    assert!(world.verdicts.contains_key(&soon));
    assert!(world.engines.is_empty());
    world.wait(Duration::from_secs(11));
    let later = world.submit(2, "a");
    world.run_out();
    assert_eq!(world.verdicts[&later], Verdict::Completed);
}

#[test]
fn a_start_that_fails_once_is_tried_again() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", GIB, 1)]);
    let job = world.submit(0, "a");
    let failure = EngineFailure { message: "exited".into(), permanent: false, was_ready: false };
    world.gone(world.in_state(EngineState::Starting)[0], Some(failure));
    world.run_out();
    assert_eq!(world.verdicts[&job], Verdict::Completed);
    assert_eq!(world.started.len(), 2);
}

#[test]
fn a_job_whose_host_is_lost_before_output_runs_elsewhere() {
    let mut world = World::new(&[(1, 8 * GIB), (1, 8 * GIB)], vec![model("a", GIB, 1)]);
    let job = world.submit(0, "a");
    world.progress();
    let host = world.started[0].1.clone();
    world.lose(&host);
    world.run_out();
    assert_eq!(world.verdicts[&job], Verdict::Completed);
    assert_ne!(world.started[1].1, host);
}

#[test]
fn a_job_that_breaks_off_after_output_is_not_tried_again() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", GIB, 1)]);
    let job = world.submit(0, "a");
    world.progress();
    let (_, attempt, engine) = world.running()[0];
    world.finish(job, attempt, engine, AttemptEnd::Failed { error: error("broke"), output_sent: true });
    assert!(matches!(world.verdicts[&job], Verdict::Failed { told: true, .. }));
}

#[test]
fn a_cancelled_waiter_gives_its_claim_up() {
    let models = vec![model("a", 6 * GIB, 1), model("b", 6 * GIB, 1)];
    let mut world = World::new(&[(1, 8 * GIB)], models);
    world.submit(0, "a");
    world.progress();
    let waiter = world.submit(1, "b");
    world.wait(Duration::from_secs(301));
    world.submit(2, "a");
    assert!(world.state.knows(JobId(2)));
    world.cancel(waiter);
    // The engine that was being drained serves on.
    world.run_out();
    assert_eq!(world.started.len(), 1);
}

#[test]
fn a_new_leader_takes_running_jobs_over_without_running_them_twice() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", GIB, 2)]);
    let job = world.submit(0, "a");
    world.progress();
    assert_eq!(world.running().len(), 1);
    world.state = berth_placement::State::new(Policy::default(), berth_wire::Epoch(2), world.now);
    world.tell(Event::Catalog(world.models.values().cloned().collect()));
    world.snapshot(&"h0".into(), "boot1".into());
    world.submit(0, "a");
    assert_eq!(world.running().len(), 1);
    world.run_out();
    assert_eq!(world.verdicts[&job], Verdict::Completed);
    assert_eq!(world.started.len(), 1);
}

#[test]
fn a_new_leader_that_hears_of_the_job_before_the_host_takes_it_over_too() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", GIB, 2)]);
    let job = world.submit(0, "a");
    world.progress();
    let running = world.running();
    world.state = berth_placement::State::new(Policy::default(), berth_wire::Epoch(2), world.now);
    world.tell(Event::Catalog(world.models.values().cloned().collect()));
    world.submit(0, "a");
    world.snapshot(&"h0".into(), "boot1".into());
    assert_eq!(world.running(), running);
    world.run_out();
    assert_eq!(world.verdicts[&job], Verdict::Completed);
}

/// A model in the way of another that has waited for too long, with one of its two slots taken.
fn drained_for_another() -> World {
    let models = vec![model("a", 6 * GIB, 2), model("b", 6 * GIB, 1)];
    let mut world = World::new(&[(1, 8 * GIB)], models);
    world.submit(0, "a");
    world.progress();
    world.submit(1, "b");
    world.wait(Duration::from_secs(301));
    world
}

#[test]
fn an_engine_that_is_drained_admits_nothing_though_it_has_a_free_slot() {
    let mut world = drained_for_another();
    world.submit(2, "a");
    assert_eq!(world.running().len(), 1);
    world.run_out();
    let order: Vec<_> = world.started.iter().map(|(model, _)| model.as_str()).collect();
    assert_eq!(order, ["a", "b", "a"]);
}

#[test]
fn an_engine_serves_all_who_waited_for_it_before_it_can_be_drained() {
    let models = vec![model("a", 6 * GIB, 1), model("b", 6 * GIB, 1)];
    let mut world = World::new(&[(1, 8 * GIB)], models);
    for n in 0..5 {
        world.submit(n, "a");
    }
    world.submit(9, "b");
    // Slow to load: when it is ready, the other model has waited for too long already.
    world.wait(Duration::from_secs(301));
    world.progress();
    for n in 10..15 {
        world.submit(n, "a");
    }
    for left in (0..5).rev() {
        let (job, attempt, engine) = world.running()[0];
        world.finish(job, attempt, engine, AttemptEnd::Completed);
        assert_eq!(world.in_state(EngineState::Stopping).len(), usize::from(left == 0), "{left} left");
    }
    assert!((0..5).all(|n| world.verdicts.contains_key(&JobId(n))));
}

#[test]
fn a_model_taken_out_of_the_catalog_finishes_what_runs_and_is_stopped_then() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", GIB, 2)]);
    let job = world.submit(0, "a");
    world.progress();
    let engine = world.engine_of("a").unwrap();
    world.tell(Event::Catalog(Vec::new()));
    world.ready(engine);
    assert_eq!(world.in_state(EngineState::Stopping), []);
    world.run_out();
    assert_eq!(world.verdicts[&job], Verdict::Completed);
    while world.progress() {}
    assert!(world.engines.is_empty());
}

#[test]
fn a_job_that_breaks_off_again_and_again_is_given_up() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", GIB, 1)]);
    let job = world.submit(0, "a");
    world.progress();
    for _ in 0..3 {
        world.wait(Duration::from_secs(1));
        let (_, attempt, engine) = world.running()[0];
        let end = AttemptEnd::Failed { error: error("broke off"), output_sent: false };
        world.finish(job, attempt, engine, end);
    }
    let Some(Verdict::Failed { error, told: false }) = world.verdicts.get(&job) else {
        panic!("not given up")
    };
    assert_eq!(error.message, "broke off");
}

#[test]
fn a_job_that_is_delivered_again_after_its_end_is_only_taken_off_the_stream() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", GIB, 1)]);
    let job = world.submit(0, "a");
    world.run_out();
    let again = berth_placement::JobFacts { arrival: world.now, ..crate::world::job(0, "a") };
    let effects = berth_placement::step(&mut world.state, Event::JobSubmitted(again), world.now);
    assert!(matches!(effects.as_slice(), [berth_placement::Effect::End { job: ended, .. }] if *ended == job));
}

#[test]
fn a_job_past_its_deadline_is_told_and_not_run() {
    let mut world = World::new(&[], vec![model("a", GIB, 1)]);
    let deadline = Some(world.now.plus(Duration::from_secs(5)));
    // The one is the client's own, the other what its gateway allows.
    for (n, hurried) in [(0, true), (1, false)] {
        let facts =
            berth_placement::JobFacts { arrival: world.now, deadline, hurried, ..crate::world::job(n, "a") };
        world.jobs.insert(JobId(n));
        world.tell(Event::JobSubmitted(facts));
    }
    world.wait(Duration::from_secs(4));
    assert!(world.verdicts.is_empty());
    world.wait(Duration::from_secs(1));
    for (n, code) in [(0, "deadline_exceeded"), (1, "wait_limit")] {
        let Verdict::Failed { error, .. } = &world.verdicts[&JobId(n)] else { panic!("not told") };
        assert_eq!(error.code, code);
    }
}

#[test]
fn a_pinned_engine_that_falls_over_by_itself_is_not_started_again_and_again() {
    let mut pinned = model("p", GIB, 1);
    pinned.pin = true;
    let mut world = World::new(&[(1, 8 * GIB)], vec![pinned]);
    for _ in 0..100 {
        world.wait(Duration::from_secs(1));
        world.progress();
        if let Some(engine) = world.in_state(EngineState::Ready).first() {
            let failure = EngineFailure { message: "x".into(), permanent: false, was_ready: true };
            world.gone(*engine, Some(failure));
        }
    }
    assert!((4..12).contains(&world.started.len()), "{} starts in 100 s", world.started.len());
}

#[test]
fn a_job_that_is_given_up_is_told_how_its_engines_failed() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", GIB, 1)]);
    let job = world.submit(0, "a");
    while !world.verdicts.contains_key(&job) {
        world.progress();
        if let Some((job, attempt, engine)) = world.running().first() {
            let why = berth_placement::Refusal::Failed("connection refused".into());
            world.engines.get_mut(engine).unwrap().running.clear();
            world.tell(Event::DispatchRefused { job: *job, attempt: *attempt, why });
            let message = "out of memory, says its log".into();
            world.gone(*engine, Some(EngineFailure { message, permanent: false, was_ready: true }));
        }
    }
    let Verdict::Failed { error, .. } = &world.verdicts[&job] else { panic!("answered") };
    assert!(
        error.message.contains("connection refused") && error.message.contains("out of memory"),
        "{error}"
    );
}

#[test]
fn a_host_that_does_not_answer_for_a_while_costs_a_job_none_of_its_attempts() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", GIB, 1)]);
    let job = world.submit(0, "a");
    let mut silences = 0;
    for _ in 0..40 {
        if silences == 12 {
            break;
        }
        if let Some((job, attempt, engine)) = world.running().first() {
            let why = berth_placement::Refusal::Silent("it does not answer".into());
            world.engines.get_mut(engine).unwrap().running.clear();
            world.tell(Event::DispatchRefused { job: *job, attempt: *attempt, why });
            silences += 1;
        } else {
            world.progress();
        }
        world.wait(Duration::from_secs(1));
    }
    assert!(silences == 12 && !world.verdicts.contains_key(&job), "it waits for its host");
    world.run_out();
    assert!(matches!(world.verdicts[&job], Verdict::Completed), "{:?}", world.verdicts[&job]);
}

#[test]
fn an_engine_that_is_used_again_and_again_is_stopped_its_idle_ttl_after_the_last_time() {
    let mut short = model("a", GIB, 1);
    short.idle_ttl = Some(Duration::from_secs(60));
    let mut world = World::new(&[(1, 8 * GIB)], vec![short]);
    for n in 0..10 {
        world.submit(n, "a");
        world.run_out();
        world.wait(Duration::from_secs(40));
    }
    assert_eq!(world.in_state(EngineState::Ready).len(), 1);
    world.wait(Duration::from_secs(19));
    assert_eq!(world.in_state(EngineState::Ready).len(), 1);
    world.wait(Duration::from_secs(1));
    assert_eq!(world.in_state(EngineState::Stopping).len(), 1);
}

#[test]
fn an_engine_that_refuses_a_job_does_not_use_up_its_attempts_before_its_host_sees_it_die() {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", 4 * GIB, 1)]);
    let job = world.submit(1, "a");
    world.progress();
    let refuses = |world: &mut World| {
        let (job, attempt, engine) = world.running()[0];
        world.finish(
            job,
            attempt,
            engine,
            AttemptEnd::Failed { error: error("refused"), output_sent: false },
        );
        engine
    };
    let engine = refuses(&mut world);
    assert!(world.running().is_empty(), "it is not sent there again in the same moment");
    world.wait(Duration::from_millis(250));
    refuses(&mut world);
    world.wait(Duration::from_millis(250));
    assert!(world.running().is_empty(), "the pause doubles");
    world.gone(engine, Some(EngineFailure { message: "x".into(), permanent: false, was_ready: true }));
    world.run_out();
    assert_eq!(world.verdicts[&job], Verdict::Completed);
    assert_eq!(world.started.len(), 2);
}
