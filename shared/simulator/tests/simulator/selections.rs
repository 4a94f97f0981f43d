//! The part of a trace that is run.

use std::time::Duration;

use berth_simulator::{Request, SelectError, Selection, ServiceCost};

fn request(line: u64, seconds: f64, session: &str, model: &str) -> Request {
    Request {
        line,
        arrival: (seconds * 1e6) as u64,
        session: session.into(),
        model: model.into(),
        prompt_tokens: 4000,
        output_tokens: 90,
    }
}

fn trace() -> Vec<Request> {
    vec![
        request(2, 0.0, "s1", "b"),
        request(3, 1.0, "s2", "a"),
        request(4, 2.0, "s1", "c"),
        request(5, 3.0, "s3", "a"),
        request(6, 4.0, "s4", "c"),
        request(7, 5.0, "s4", "d"),
    ]
}

#[test]
fn all_of_a_trace_keeps_its_order_and_its_times() {
    let workload = Selection::default().apply(&trace()).unwrap();
    assert_eq!(workload.models, ["b", "a", "c", "d"]);
    assert_eq!(workload.sessions, ["s1", "s2", "s3", "s4"]);
    let arrivals: Vec<u64> = workload.jobs.iter().map(|job| job.arrival / 1_000_000).collect();
    assert_eq!(arrivals, [0, 1, 2, 3, 4, 5]);
    // 0.1 s and 4000 prompt tokens at 4000 a second and 90 output tokens at 45 a second.
    assert!(workload.jobs.iter().all(|job| job.service == 3_100_000));
}

#[test]
fn ranks_go_by_jobs_and_ties_by_first_arrival() {
    let select = |ranks| Selection { model_ranks: Some(ranks), ..Selection::default() }.apply(&trace());
    assert_eq!(select(1..=1).unwrap().models, ["a"]);
    assert_eq!(select(2..=3).unwrap().models, ["c", "b"]);
    assert_eq!(select(4..=4).unwrap().models, ["d"]);
    let workload = select(1..=2).unwrap();
    assert_eq!(workload.models, ["a", "c"]);
    assert_eq!(workload.jobs.iter().map(|job| job.line).collect::<Vec<_>>(), [3, 4, 5, 6]);
    assert_eq!(select(3..=5).unwrap_err(), SelectError::Ranks { first: 3, last: 5, models: 4 });
    assert!(select(0..=1).is_err());
}

#[test]
fn a_window_begins_at_zero_and_excludes_its_end() {
    let window =
        Selection { from: Duration::from_secs(1), to: Some(Duration::from_secs(4)), ..Selection::default() };
    let jobs = window.apply(&trace()).unwrap().jobs;
    assert_eq!(
        jobs.iter().map(|job| (job.line, job.arrival)).collect::<Vec<_>>(),
        [(3, 0), (4, 1_000_000), (5, 2_000_000)]
    );
}

#[test]
fn speed_divides_arrivals_and_costs_are_as_given() {
    let selection = Selection {
        speed: 2.5,
        cost: ServiceCost { overhead: Duration::from_secs(1), prefill: 1000.0, decode: 10.0 },
        ..Selection::default()
    };
    let jobs = selection.apply(&trace()).unwrap().jobs;
    assert_eq!(jobs.last().map(|job| (job.arrival, job.service)), Some((2_000_000, 14_000_000)));
}

#[test]
fn a_share_of_sessions_goes_by_the_hash_of_their_names() {
    // The first six hexadecimal digits of md5: s1 8ddf87, s2 fac989, s3 c0828e, s4 7e7cb6.
    let share = |session_share| {
        let selection = Selection { session_share, ..Selection::default() };
        selection.apply(&trace()).map(|workload| workload.sessions)
    };
    assert_eq!(share(0.5).unwrap(), ["s4"]);
    assert_eq!(share(0.6).unwrap(), ["s1", "s4"]);
    assert_eq!(share(1.0).unwrap().len(), 4);
    assert_eq!(share(0.0).unwrap_err(), SelectError::Nothing { requests: 6 });
}

#[test]
fn ranks_are_counted_after_the_share() {
    let selection = Selection { session_share: 0.6, model_ranks: Some(1..=1), ..Selection::default() };
    assert_eq!(selection.apply(&trace()).unwrap().models, ["c"]);
}

#[test]
fn nothing_left_says_what_to_widen() {
    let late = Selection { from: Duration::from_secs(60), ..Selection::default() };
    let message = late.apply(&trace()).unwrap_err().to_string();
    assert!(message.contains("of 6") && message.contains("window"), "{message}");
}
