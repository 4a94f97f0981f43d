//! What part of its GPUs vLLM is told to take: it takes nine tenths unless it is told.

use berth_wire::{AcceleratorKind, EngineKind, StartEngine};

use crate::accelerators::Devices;

const FLAG: &str = "--gpu-memory-utilization";
/// Flags by which a model says it itself.
const OWN: [&str; 2] = [FLAG, "--kv-cache-memory-bytes"];

/// The arguments that say it.
pub(crate) fn of(start: &StartEngine, devices: &Devices) -> Vec<String> {
    let engine = &start.model.engine;
    let said = engine.command.iter().chain(&engine.args).any(|word| {
        let flag = word.split('=').next().unwrap_or(word);
        OWN.contains(&flag)
    });
    if engine.kind != EngineKind::Vllm || said {
        return Vec::new();
    }
    let percents = start.reservations.iter().filter_map(|reservation| {
        let device =
            devices.get(&reservation.accelerator).filter(|device| device.kind != AcceleratorKind::Ram)?;
        reservation.bytes.saturating_mul(100).checked_div(device.memory)
    });
    match percents.min() {
        // All of it: vLLM knows best how much of that it can have.
        None | Some(95..) => Vec::new(),
        Some(percent) => vec![FLAG.into(), format!("0.{:02}", percent.max(1))],
    }
}

#[cfg(test)]
mod tests {
    use berth_wire::{EngineId, Epoch, Reservation};

    use super::*;
    use crate::gauge::{Reading, Recorded};

    fn told(kind: &str, bytes: u64, args: &str) -> Vec<String> {
        let text = format!("[[models]]\nid = \"m\"\nengine = \"{kind}\"\nargs = [{args}]\n");
        let model = berth_config::Config::parse(&text, "test.toml").unwrap().models.remove(0);
        let reservations = vec![Reservation { accelerator: "GPU-1".into(), bytes }];
        let (engine, epoch) = (EngineId::new(Epoch(1), 1), Epoch(1));
        let start = StartEngine { engine, epoch, model, reservations, boot: None };
        let gpu = Reading {
            id: "GPU-1".into(),
            kind: AcceleratorKind::Nvidia,
            name: "test".into(),
            usable: 1000,
            free: 1000,
            holders: Vec::new(),
        };
        of(&start, &Devices::measured_by(Box::new(Recorded::new([vec![gpu]])), None))
    }

    #[test]
    fn a_part_of_a_gpu_is_told_as_a_share_of_it() {
        assert_eq!(told("vllm", 379, ""), [FLAG, "0.37"]);
        assert_eq!(told("vllm", 3, ""), [FLAG, "0.01"]);
    }

    #[test]
    fn all_of_it_a_model_that_says_so_itself_and_other_engines_are_told_nothing() {
        for (kind, bytes, args) in [
            ("vllm", 960, ""),
            ("vllm", 379, "\"--gpu-memory-utilization=0.5\""),
            ("vllm", 379, "\"--kv-cache-memory-bytes\", \"1G\""),
            ("llama.cpp", 379, ""),
        ] {
            assert_eq!(told(kind, bytes, args), Vec::<String>::new(), "{kind} {bytes} {args}");
        }
    }
}
