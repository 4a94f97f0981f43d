//! Who is served first within a model's queue.

use std::time::Duration;

use berth_placement::{AttemptEnd, JobFacts, Policy, Verdict};
use berth_wire::{Class, JobId};

use crate::world::{GIB, World, job, model};

/// One engine of one slot, taken by job 0.
fn busy_with_one_slot() -> World {
    let mut world = World::new(&[(1, 8 * GIB)], vec![model("a", GIB, 1)]);
    world.submit(0, "a");
    world.progress();
    world
}

fn of(world: &mut World, n: u128, session: &str, key: &str, tokens: u64) -> JobId {
    let facts = JobFacts {
        arrival: world.now,
        session: Some(session.into()),
        key: Some(key.into()),
        tokens,
        ..job(n, "a")
    };
    world.send(facts)
}

/// Ends what runs, again and again, and says in which order jobs ran.
fn order(world: &mut World) -> Vec<u128> {
    let mut order = Vec::new();
    while let Some((job, attempt, engine)) = world.running().first().copied() {
        order.push(job.0);
        world.finish(job, attempt, engine, AttemptEnd::Completed);
    }
    order
}

#[test]
fn a_session_that_floods_the_queue_does_not_hold_up_another() {
    let mut world = busy_with_one_slot();
    for n in 1..=6 {
        of(&mut world, n, "flood", "k", 1000);
    }
    of(&mut world, 7, "quiet", "k", 1000);
    assert_eq!(order(&mut world), [0, 1, 7, 2, 3, 4, 5, 6]);
}

#[test]
fn keys_share_first_and_their_sessions_after() {
    let mut world = busy_with_one_slot();
    for n in 1..=4 {
        of(&mut world, n, &format!("s{n}"), "many", 1000);
    }
    of(&mut world, 5, "s", "one", 1000);
    of(&mut world, 6, "s", "one", 1000);
    assert_eq!(order(&mut world), [0, 1, 5, 2, 6, 3, 4], "a key with many sessions has no more than another");
}

#[test]
fn what_a_session_had_counts_in_tokens_not_in_jobs() {
    let mut world = busy_with_one_slot();
    for n in 1..=2 {
        of(&mut world, n, "long", "k", 3000);
    }
    for n in 3..=6 {
        of(&mut world, n, "short", "k", 1000);
    }
    assert_eq!(order(&mut world), [0, 1, 3, 4, 5, 2, 6]);
}

#[test]
fn a_session_that_returns_has_earned_nothing_by_being_away() {
    let mut world = busy_with_one_slot();
    of(&mut world, 1, "new", "k", 1000);
    for n in 2..=9 {
        of(&mut world, n, "steady", "k", 1000);
    }
    for _ in 0..6 {
        let (job, attempt, engine) = world.running()[0];
        world.finish(job, attempt, engine, AttemptEnd::Completed);
    }
    // Steady has had five of its eight; new comes back with as many as are left.
    for n in 10..=12 {
        of(&mut world, n, "new", "k", 1000);
    }
    let rest = order(&mut world);
    assert_eq!(rest, [6, 10, 7, 11, 8, 12, 9], "they take turns from here on");
}

#[test]
fn a_class_of_four_times_the_weight_is_served_four_times_as_much() {
    let mut world = busy_with_one_slot();
    for n in 1..=12 {
        let (session, class) = if n <= 6 { ("i", Class::Interactive) } else { ("s", Class::Standard) };
        let facts = JobFacts {
            arrival: world.now,
            session: Some(session.into()),
            class,
            tokens: 1000,
            ..job(n, "a")
        };
        world.send(facts);
    }
    let served = order(&mut world);
    let interactive = served[1..7].iter().filter(|n| **n <= 6).count();
    assert_eq!(interactive, 5, "{served:?}");
}

#[test]
fn a_job_past_its_limit_goes_before_all_shares() {
    let mut world = busy_with_one_slot();
    for n in 1..=3 {
        of(&mut world, n, "flood", "k", 1000);
    }
    world.wait(Duration::from_secs(301));
    of(&mut world, 4, "quiet", "k2", 1);
    assert_eq!(order(&mut world), [0, 1, 2, 3, 4], "those who have waited too long are first");
}

#[test]
fn a_queue_that_is_full_says_when_to_come_again() {
    let policy = Policy { model_queue_limit: 2, ..Policy::default() };
    let mut world = World::with(policy, &[(1, 8 * GIB)], vec![model("a", GIB, 1)]);
    for n in 0..4 {
        world.submit(n, "a");
        world.progress();
    }
    let waits = |world: &World| world.state.jobs(100, world.now).len();
    let before = waits(&world);
    let refused: Vec<_> = (10..14).map(|n| world.submit(n, "a")).collect();
    let told = refused.iter().filter_map(|job| world.verdicts.get(job)).count();
    assert!(told >= 2, "{told} of {} refused, {before} before", refused.len());
    let Some(Verdict::Failed { error, .. }) = refused.iter().find_map(|job| world.verdicts.get(job)) else {
        panic!("not refused")
    };
    assert_eq!(error.code, "queue_full");
    assert!(error.message.contains("2 jobs wait for `a`"), "{error}");
    let again = error.retry_after.unwrap();
    assert!((1..=60).contains(&again.as_secs()), "{again:?}");
    let policy = Policy { key_queue_limit: 4, ..Policy::default() };
    let mut world = World::with(policy, &[(1, 8 * GIB)], vec![model("b", GIB, 1)]);
    let keyed: Vec<_> = (20..26)
        .map(|n| {
            let facts = JobFacts { arrival: world.now, key: Some("k".into()), ..job(n, "b") };
            world.send(facts)
        })
        .collect();
    let told = keyed.iter().filter(|job| world.verdicts.contains_key(*job)).count();
    assert_eq!(told, 2, "the fifth and sixth of that key");
}

#[test]
fn a_guess_of_far_too_many_tokens_does_not_hold_up_who_comes_while_it_is_outstanding() {
    let mut world = busy_with_one_slot();
    for n in 1..=40 {
        of(&mut world, n, "flood", "k", 270);
    }
    let answer = |world: &mut World| {
        let (job, attempt, engine) = world.running()[0];
        world.answer(job, attempt, engine, 10, 9);
        job.0
    };
    for _ in 0..6 {
        answer(&mut world);
    }
    of(&mut world, 100, "chat", "k", 270);
    let until: Vec<u128> = (0..40).map(|_| answer(&mut world)).take_while(|n| *n != 100).collect();
    assert!(until.len() <= 2, "{until:?} went before it");
}

#[test]
fn a_key_that_returns_has_earned_nothing_by_being_away() {
    let mut world = busy_with_one_slot();
    of(&mut world, 1, "s", "new", 1000);
    for n in 2..=9 {
        of(&mut world, n, "s", "steady", 1000);
    }
    for _ in 0..6 {
        let (job, attempt, engine) = world.running()[0];
        world.finish(job, attempt, engine, AttemptEnd::Completed);
    }
    for n in 10..=12 {
        of(&mut world, n, "s", "new", 1000);
    }
    assert_eq!(order(&mut world), [6, 10, 7, 11, 8, 12, 9], "they take turns from here on");
}
