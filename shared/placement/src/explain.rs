//! Why: reasons for people, in the decision log and in errors.

use berth_wire::{ApiError, ErrorKind, ModelId};
use bytesize::ByteSize;

use crate::books::{EnginePhase, Model};
use crate::place::{eligible, need_on};
use crate::state::Step;

impl Step<'_> {
    /// Why a job of the model waits.
    pub(crate) fn why_waiting(&self, id: &ModelId) -> String {
        let Some(model) = self.state.models.get(id) else { return "the model is gone".into() };
        let engines = || model.engines.iter().filter_map(|id| self.state.engines.get(id));
        if engines().any(|engine| matches!(engine.phase, EnginePhase::Ordered | EnginePhase::Starting)) {
            return "its model is being loaded".into();
        }
        if engines().any(|engine| engine.phase == EnginePhase::Ready && engine.draining_for.is_some()) {
            return "its engine is being drained for a model that has waited longer".into();
        }
        if engines().any(|engine| engine.phase == EnginePhase::Ready) {
            return format!("all {} slots of its model are taken", model.needs.concurrency);
        }
        if model.plan.is_some() {
            return "memory is being freed for its model".into();
        }
        if self.state.hosts.is_empty() {
            return "no host has joined yet".into();
        }
        if model.not_before.is_some_and(|at| at > self.now) {
            return "its engine did not start; it is tried again shortly".into();
        }
        "its model has no engine yet".into()
    }

    /// Why an engine of the model is started.
    pub(crate) fn why_start(&self, id: &ModelId) -> String {
        let Some(model) = self.state.models.get(id) else { return String::new() };
        match model.queue.len() {
            0 => "it is pinned".into(),
            1 => "1 job waits for it".into(),
            n => format!("{n} jobs wait for it"),
        }
    }

    /// Says what a model needs and what there is.
    pub(crate) fn cannot_fit(&self, id: &ModelId) -> ApiError {
        let needs = match self.state.models.get(id) {
            Some(model) => need_text(model),
            None => "more than there is".into(),
        };
        let mut offers: Vec<String> = Vec::new();
        if let Some(model) = self.state.models.get(id) {
            for (name, host) in &self.state.hosts {
                let memory = host.devices.iter().map(|d| d.memory).max().unwrap_or(0);
                let offer = if eligible(host, model) {
                    format!("{name} has {} accelerator(s) of up to {}", host.devices.len(), show(memory))
                } else if !host.drivers.contains(&model.needs.driver) {
                    format!("{name} cannot run the {} driver", model.needs.driver.as_str())
                } else if host.draining {
                    format!("{name} is draining")
                } else {
                    format!("{name} lacks a label of [{}]", model.needs.labels.join(", "))
                };
                offers.push(offer);
                if offers.len() == 8 {
                    offers.push("...".into());
                    break;
                }
            }
        }
        ApiError::new(
            ErrorKind::CannotFit,
            "model_cannot_fit",
            format!("`{id}` needs {needs}, and no host can give it: {}", offers.join("; ")),
        )
        .param("model")
    }
}

fn need_text(model: &Model) -> String {
    let accelerators = model.needs.accelerators;
    match model.needs.memory {
        Some(bytes) if accelerators > 1 => {
            let each = need_on(model, &crate::books::Device { id: "".into(), memory: 0 });
            format!(
                "{} of memory on {accelerators} accelerators of one host ({} each)",
                show(bytes),
                show(each)
            )
        }
        Some(bytes) => format!("{} of memory", show(bytes)),
        None => format!("all the memory of {accelerators} accelerator(s) of one host"),
    }
}

fn show(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}
