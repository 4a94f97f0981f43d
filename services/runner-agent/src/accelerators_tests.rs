use berth_wire::Epoch;

use super::*;
use crate::gauge::{Holder, Recorded};

const GIB: u64 = 1 << 30;

fn devices(memory: u64) -> Devices {
    Devices::measured_by(Box::new(Recorded::new([])), Some(memory))
}

fn reservation(id: &str, bytes: u64) -> Reservation {
    Reservation { accelerator: id.into(), bytes }
}

/// An H100 as NVML tells of it, with `used` bytes in use and these programs on it.
fn gpu(used: u64, holders: &[(u32, u64)]) -> Vec<Reading> {
    let usable = 80 * GIB;
    vec![Reading {
        id: "GPU-1".into(),
        kind: AcceleratorKind::Nvidia,
        name: "NVIDIA H100 80GB HBM3".into(),
        usable,
        free: usable - used,
        holders: holders.iter().map(|&(pid, bytes)| Holder { pid, bytes: Some(bytes) }).collect(),
    }]
}

fn replayed(readings: &[Vec<Reading>]) -> Devices {
    Devices::measured_by(Box::new(Recorded::new(readings.to_vec())), None)
}

fn claim(bytes: u64, mark: Option<Mark>) -> Claim {
    let reservations = vec![reservation("GPU-1", bytes)];
    Claim { engine: EngineId::new(Epoch(1), 1), mark, reservations, lent: 0 }
}

#[test]
fn what_is_held_counts_against_the_budget() {
    let devices = devices(100 << 20);
    let held = [reservation(RAM, 60 << 20), reservation("other", 90 << 20)];
    assert_eq!(devices.check_fit(&[reservation(RAM, 40 << 20)], &held.iter()), Ok(()));
    let refused = devices.check_fit(&[reservation(RAM, 41 << 20)], &held.iter()).unwrap_err();
    assert!(refused.contains("only 40 MiB are left"), "{refused}");
}

#[test]
fn an_unknown_or_repeated_accelerator_is_refused() {
    let devices = devices(100);
    assert!(devices.check_fit(&[reservation("gpu", 1)], &[].iter()).unwrap_err().contains("`gpu`"));
    let twice = [reservation(RAM, 1), reservation(RAM, 1)];
    assert!(devices.check_fit(&twice, &[].iter()).unwrap_err().contains("twice"));
    assert!(devices.check_fit(&[], &[].iter()).unwrap_err().contains("reservations"));
}

#[test]
fn the_pseudo_device_measures_what_is_free() {
    let devices = devices(1 << 20);
    assert_eq!(devices.measure(&[], &[]).accelerators[0].free, Some(1 << 20));
}

#[test]
fn only_a_declared_need_is_a_limit() {
    let devices = devices(100);
    let promised = [reservation(RAM, 30)];
    assert_eq!((devices.ram(&promised, true), devices.ram(&promised, false)), (Some(30), Some(100)));
}

#[test]
fn memory_that_others_keep_is_taken_out_of_the_budget_and_given_back() {
    let (idle, taken) = (gpu(0, &[]), gpu(10 * GIB, &[(1, 10 * GIB)]));
    let devices = replayed(&[idle.clone(), idle.clone(), taken.clone(), taken.clone(), idle.clone(), idle]);
    let mut last = Vec::new();
    let mut budget = || {
        last = devices.measure(&[], &last).accelerators;
        (last[0].memory / GIB, last[0].unexplained.unwrap() / GIB)
    };
    assert_eq!(budget(), (80, 0));
    assert_eq!(budget(), (80, 10), "for a moment it may be an engine that has just ended");
    assert_eq!(budget(), (70, 10));
    assert_eq!(budget(), (80, 0));
}

#[test]
fn what_was_promised_is_not_taken_back() {
    let taken = gpu(50 * GIB, &[(1, 50 * GIB)]);
    let devices = replayed(&[gpu(0, &[]), taken]);
    let claims = [claim(60 * GIB, None)];
    let first = devices.measure(&claims, &[]).accelerators;
    assert_eq!(devices.measure(&claims, &first).accelerators[0].memory, 60 * GIB);
}

#[test]
fn an_engine_is_measured_by_its_processes() {
    let me = std::process::id();
    let devices = replayed(&[gpu(33 * GIB, &[(me, 30 * GIB), (u32::MAX, 3 * GIB)])]);
    let claims = [claim(40 * GIB, Some(Mark::Process(me)))];
    let measured = devices.measure(&claims, &[]);
    assert_eq!(measured.engines.get(&claims[0].engine), Some(&(30 * GIB)));
    let gpu = &measured.accelerators[0];
    assert_eq!((gpu.held, gpu.unexplained), (Some(30 * GIB), Some(3 * GIB)));
}

#[test]
fn what_a_server_of_others_holds_for_us_is_no_strangers() {
    let devices = replayed(&[gpu(12 * GIB, &[(1, 12 * GIB)])]);
    let claims = [Claim { lent: 10 * GIB, ..claim(10 * GIB, None) }];
    let gpu = &devices.measure(&claims, &[]).accelerators[0];
    assert_eq!((gpu.held, gpu.unexplained), (Some(10 * GIB), Some(2 * GIB)));
}

#[test]
fn who_holds_the_memory_is_said_by_name() {
    let me = std::process::id();
    let devices = replayed(&[gpu(30 * GIB, &[(me, 30 * GIB)])]);
    let (free, who) = devices.free(&"GPU-1".into(), &[]).unwrap();
    assert_eq!(free, 50 * GIB);
    assert!(who.contains(&format!("(process {me}, 30720 MiB)")), "{who}");
}

#[test]
fn a_gpu_that_stays_gone_offers_no_more_than_was_promised_until_it_is_back() {
    let devices = replayed(&[gpu(0, &[]), Vec::new(), Vec::new(), Vec::new(), gpu(0, &[])]);
    let mut last = Vec::new();
    let mut measured = |claims: &[Claim]| {
        last = devices.measure(claims, &last).accelerators;
        (last[0].free.is_some(), last[0].memory / GIB)
    };
    assert_eq!(measured(&[]), (false, 80), "it may be for a moment");
    assert_eq!(measured(&[claim(30 * GIB, None)]), (false, 30));
    assert_eq!(measured(&[]), (false, 0));
    assert_eq!(measured(&[]), (true, 80));
    let devices = replayed(&[gpu(0, &[]), Vec::new()]);
    assert_eq!(devices.free(&"GPU-1".into(), &[]), None, "nothing is started there");
}
