//! What a model's container or process may use: fields of `[[models]]`, some of them for the Docker driver alone, checked.

use std::ops::Range;
use std::time::Duration;

use berth_wire::{ContainerSpec, Driver, EngineKind, Ulimit};

use crate::model::check_memory;
use crate::problem::{Findings, suggest};
use crate::raw::RawModel;
use crate::spanned::Spanned;

pub(crate) const IPC: [&str; 4] = ["private", "shareable", "none", "host"];
const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Builds it; what is wrong goes to `findings`.
pub(crate) fn resolve(
    raw: &RawModel,
    kind: EngineKind,
    driver: Driver,
    findings: &mut Findings<'_>,
) -> ContainerSpec {
    if driver != Driver::Docker {
        for (name, span) in given(raw) {
            findings.add(
                span,
                format!("`{name}` is of a container, and this model runs as a process"),
                format!("remove `{name}`, or say driver = \"docker\""),
            );
        }
    }
    if let Some(shm) = raw.shm_size.as_ref().filter(|shm| shm.get_ref().0 == 0) {
        findings.add(
            shm.span(),
            "some shared memory is needed",
            "leave it out for what its kind of engine needs",
        );
    }
    if let Some(ipc) = raw.ipc.as_ref().filter(|ipc| !IPC.contains(&ipc.get_ref().as_str())) {
        findings.add(
            ipc.span(),
            format!("unknown ipc mode `{}`", ipc.get_ref()),
            suggest(ipc.get_ref(), &IPC),
        );
    }
    if let Some(cpus) = raw.cpuset.as_ref().filter(|cpus| !is_cpuset(cpus.get_ref())) {
        findings.add(cpus.span(), "this is no set of CPUs", "write numbers and ranges, as in \"0-3,8\"");
    }
    if let Some(pids) = raw.pids_limit.as_ref().filter(|pids| *pids.get_ref() < 16) {
        findings.add(pids.span(), "no engine gets by with so few threads", "leave it out for 32768");
    }
    if let Some(ram) = &raw.ram {
        if ram.get_ref().0 == 0 {
            findings.add(ram.span(), "an engine needs some RAM", "leave it out for no limit");
        }
        check_memory(ram, findings);
    }
    if let Some(span) = raw.pull_timeout.as_ref().filter(|span| span.get_ref().0 < Duration::from_secs(1)) {
        findings.add(
            span.span(),
            "no registry is that steady: at least a second",
            "say how long a pull may make no progress, or leave it out for 3m",
        );
    }
    let limits = ContainerSpec {
        cpus: raw.cpuset.as_ref().map(|cpus| cpus.get_ref().clone()),
        pids: raw.pids_limit.as_ref().map(|pids| *pids.get_ref()),
        ram: raw.ram.as_ref().map(|ram| ram.get_ref().0),
        ..ContainerSpec::default()
    };
    if driver != Driver::Docker {
        return limits;
    }
    ContainerSpec {
        shm: raw.shm_size.as_ref().map(|size| size.get_ref().0),
        ipc: raw.ipc.as_ref().map(|ipc| ipc.get_ref().clone()),
        ulimits: raw.ulimits.0.iter().filter_map(|word| ulimit(word, findings)).collect(),
        read_only: raw.read_only.as_ref().map_or_else(|| needs_no_writes(raw, kind), |only| *only.get_ref()),
        pull_timeout: raw.pull_timeout.as_ref().map(|span| span.get_ref().0),
        ..limits
    }
}

/// The fields that are of a container alone, where they are written.
fn given(raw: &RawModel) -> Vec<(&'static str, Range<usize>)> {
    let fields = [
        ("shm_size", raw.shm_size.as_ref().map(Spanned::span)),
        ("ipc", raw.ipc.as_ref().map(Spanned::span)),
        ("ulimits", raw.ulimits.0.first().map(Spanned::span)),
        ("read_only", raw.read_only.as_ref().map(Spanned::span)),
        ("pull_timeout", raw.pull_timeout.as_ref().map(Spanned::span)),
    ];
    fields.into_iter().filter_map(|(name, span)| Some((name, span?))).collect()
}

/// llama-server writes nothing but the weights that it fetches, which belong into a volume.
fn needs_no_writes(raw: &RawModel, kind: EngineKind) -> bool {
    let fetches = || {
        raw.args.0.iter().any(|word| {
            let word = word.get_ref().as_str();
            ["-hf", "--hf-", "-mu", "--model-url", "-dr", "--docker-repo"]
                .iter()
                .any(|flag| word.starts_with(flag))
        })
    };
    let keeps = || raw.volumes.0.iter().any(|volume| !volume.get_ref().ends_with(":ro"));
    let own_program = raw.command.is_some();
    kind == EngineKind::LlamaCpp && !own_program && (!fetches() || keeps())
}

/// `name=soft[:hard]`; -1 is no limit.
fn ulimit(word: &Spanned<String>, findings: &mut Findings<'_>) -> Option<Ulimit> {
    let text = word.get_ref();
    let (name, values) = text.split_once('=').unwrap_or((text, ""));
    if !ULIMITS.contains(&name) {
        findings.add(word.span(), format!("unknown ulimit `{name}`"), suggest(name, &ULIMITS));
        return None;
    }
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (soft.parse::<i64>(), hard.parse::<i64>());
    match (soft, hard) {
        (Ok(soft), Ok(hard)) if soft >= -1 && hard >= -1 && (hard == -1 || (soft != -1 && soft <= hard)) => {
            Some(Ulimit { name: name.into(), soft, hard })
        }
        _ => {
            findings.add(
                word.span(),
                "this is no ulimit",
                "write name=limit or name=soft:hard, as in \"nofile=65536\"; -1 is none, as in \"memlock=-1\"",
            );
            None
        }
    }
}

fn is_cpuset(text: &str) -> bool {
    let number = |text: &str| text.parse::<u16>().ok();
    text.split(',').all(|part| match part.split_once('-') {
        Some((from, to)) => number(from).zip(number(to)).is_some_and(|(from, to)| from <= to),
        None => number(part).is_some(),
    })
}
