//! How far the pull of an image is: bytes, layers, and how long it may still take.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use berth_config::show_bytes;
use bollard::models::CreateImageInfo;

/// The speed of a pull is taken over so long.
const WINDOW: Duration = Duration::from_secs(10);
/// Over less than this a speed says nothing.
const LEAST: Duration = Duration::from_secs(1);

/// How far one layer is.
#[derive(Debug, Default, Clone, Copy)]
struct Layer {
    got: u64,
    /// `None` until it is begun.
    total: Option<u64>,
    done: bool,
}

/// How far a pull is, over all layers that are not here yet.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    seen: BTreeMap<String, Layer>,
    /// Bytes there were, and when, oldest first.
    samples: VecDeque<(Duration, u64)>,
}

impl Layers {
    /// Takes what Docker says at `at`, counted from the start of the pull; whether there is news in it.
    pub(crate) fn take(&mut self, step: CreateImageInfo, at: Duration) -> bool {
        let (Some(id), Some(status)) = (step.id, step.status) else { return false };
        let size = |bytes: Option<i64>| bytes.and_then(|bytes| u64::try_from(bytes).ok());
        let detail = step.progress_detail.unwrap_or_default();
        match status.as_str() {
            "Pulling fs layer" | "Waiting" => {
                self.seen.entry(id).or_default();
            }
            "Downloading" => {
                let layer = self.seen.entry(id).or_default();
                layer.got = size(detail.current).unwrap_or(layer.got);
                layer.total = size(detail.total).filter(|total| *total > 0).or(layer.total);
            }
            "Verifying Checksum" | "Download complete" => {
                let layer = self.seen.entry(id).or_default();
                // A small one is here before anything is said of its size.
                let total = layer.total.unwrap_or(layer.got);
                (layer.got, layer.total) = (total, Some(total));
            }
            "Pull complete" => {
                let layer = self.seen.entry(id).or_default();
                layer.done = true;
                layer.total = layer.total.or(Some(layer.got));
            }
            "Already exists" => {
                self.seen.remove(&id);
            }
            // Unpacking counts its own bytes from zero again.
            _ => return false,
        }
        self.samples.push_back((at, self.got()));
        while self.samples.front().is_some_and(|(then, _)| at.saturating_sub(*then) > WINDOW) {
            self.samples.pop_front();
        }
        true
    }

    fn got(&self) -> u64 {
        self.seen.values().map(|layer| layer.got).sum()
    }

    /// Bytes in all, once every layer's size is known.
    fn total(&self) -> Option<u64> {
        self.seen.values().map(|layer| layer.total).sum()
    }

    /// Bytes a second of late.
    fn speed(&self) -> Option<f64> {
        let ((then, before), (now, got)) = (self.samples.front()?, self.samples.back()?);
        let span = now.saturating_sub(*then);
        #[expect(clippy::cast_precision_loss, reason = "a speed for people")]
        let bytes = got.saturating_sub(*before) as f64;
        (span >= LEAST && bytes > 0.0).then(|| bytes / span.as_secs_f64())
    }

    /// For those who wait.
    pub(crate) fn text(&self) -> String {
        let (got, count) = (self.got(), self.seen.len());
        let done = self.seen.values().filter(|layer| layer.done).count();
        let layers = format!("{done} of {count} layers");
        let Some(total) = self.total() else {
            return format!("pulling its image: {} so far, {layers}", show_bytes(got));
        };
        if got >= total {
            return format!("unpacking its image: {layers}");
        }
        let percent = got.saturating_mul(100).checked_div(total).unwrap_or(0);
        let mut text =
            format!("pulling its image: {percent}%, {} of {}, {layers}", show_bytes(got), show_bytes(total));
        if let Some(speed) = self.speed() {
            #[expect(clippy::cast_precision_loss, reason = "a time for people")]
            let left = (total - got) as f64 / speed;
            text.push_str(&format!(", {} left", show_left(left)));
        }
        text
    }
}

/// Whole seconds below two minutes, minutes above.
fn show_left(seconds: f64) -> String {
    if seconds < 120.0 {
        format!("{} s", seconds.ceil())
    } else {
        format!("{} min", (seconds / 60.0).round())
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ProgressDetail;

    use super::*;

    fn step(id: &str, status: &str, current: i64, total: i64) -> CreateImageInfo {
        CreateImageInfo {
            id: Some(id.into()),
            status: Some(status.into()),
            progress_detail: Some(ProgressDetail { current: Some(current), total: Some(total) }),
            ..CreateImageInfo::default()
        }
    }

    #[test]
    fn bytes_layers_and_the_time_left_are_told_once_they_are_known() {
        let mut layers = Layers::default();
        let at = Duration::from_secs;
        for id in ["a", "b", "c"] {
            assert!(layers.take(step(id, "Pulling fs layer", 0, 0), at(0)));
        }
        assert!(layers.take(step("a", "Already exists", 0, 0), at(0)));
        assert!(layers.take(step("b", "Downloading", 0, 8 << 20), at(0)));
        assert!(layers.take(step("b", "Downloading", 2 << 20, 8 << 20), at(2)));
        assert_eq!(layers.text(), "pulling its image: 2.0 MiB so far, 0 of 2 layers");
        assert!(layers.take(step("c", "Downloading", 2 << 20, 8 << 20), at(4)));
        assert_eq!(layers.text(), "pulling its image: 25%, 4.0 MiB of 16.0 MiB, 0 of 2 layers, 12 s left");
        assert!(layers.take(step("b", "Download complete", 0, 0), at(5)));
        assert!(!layers.take(step("b", "Extracting", 1, 8 << 20), at(5)), "it begins from zero again");
        assert!(layers.take(step("b", "Pull complete", 0, 0), at(6)));
        assert!(layers.take(step("c", "Verifying Checksum", 0, 0), at(7)));
        assert_eq!(layers.text(), "unpacking its image: 1 of 2 layers");
    }

    #[test]
    fn a_pull_that_has_slowed_down_is_told_by_its_speed_of_late() {
        let mut layers = Layers::default();
        let at = Duration::from_secs;
        layers.take(step("a", "Downloading", 0, 100 << 20), at(0));
        layers.take(step("a", "Downloading", 50 << 20, 100 << 20), at(1));
        layers.take(step("a", "Downloading", 60 << 20, 100 << 20), at(11));
        assert!(layers.text().ends_with(", 40 s left"), "{}", layers.text());
        layers.take(step("a", "Downloading", 61 << 20, 100 << 20), at(21));
        assert!(layers.text().ends_with(", 7 min left"), "{}", layers.text());
    }
}
