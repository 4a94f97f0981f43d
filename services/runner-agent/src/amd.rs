//! AMD GPUs as the kernel's `amdgpu` driver shows them
//! (<https://docs.kernel.org/gpu/amdgpu/driver-misc.html>, <https://docs.kernel.org/gpu/drm-usage-stats.html>).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use berth_wire::AcceleratorKind;

use crate::gauge::{Holder, Reading};

const VENDOR: &str = "0x1002";
/// A processor's own graphics have a carve-out of this or less, which is no place for models.
const SMALLEST: u64 = 2 << 30;

/// Every AMD GPU below `sysfs` (`/sys/class/drm`).
pub(crate) fn read(sysfs: &Path) -> Vec<Reading> {
    let Ok(entries) = fs::read_dir(sysfs) else { return Vec::new() };
    let cards: BTreeSet<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            // `card0-DP-1` is a connector.
            name.and_then(|name| name.strip_prefix("card"))
                .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        })
        .collect();
    let mut gpus: Vec<(Reading, String)> = cards.iter().filter_map(|card| card_of(card)).collect();
    if !gpus.is_empty() {
        let mut held = holders(Path::new("/proc"));
        for (gpu, bus) in &mut gpus {
            gpu.holders = held.remove(bus).unwrap_or_default();
        }
    }
    gpus.into_iter().map(|(gpu, _)| gpu).collect()
}

fn card_of(card: &Path) -> Option<(Reading, String)> {
    let device = card.join("device");
    let text = |name: &str| fs::read_to_string(device.join(name)).ok().map(|text| text.trim().to_owned());
    let number = |name: &str| text(name)?.parse::<u64>().ok();
    if text("vendor")? != VENDOR {
        return None;
    }
    let (total, used) = (number("mem_info_vram_total")?, number("mem_info_vram_used")?);
    if total <= SMALLEST {
        return None;
    }
    // ROCm names a GPU by the same number; older ones have none, and are named by their place on the bus.
    let bus = fs::canonicalize(&device).ok()?.file_name()?.to_str()?.to_owned();
    let id =
        text("unique_id").filter(|id| !id.is_empty()).map_or_else(|| bus.clone(), |id| format!("GPU-{id}"));
    let name = text("product_name").filter(|name| !name.is_empty()).unwrap_or_else(|| "AMD GPU".into());
    let reading = Reading {
        id: id.into(),
        kind: AcceleratorKind::Amd,
        name,
        usable: total,
        free: total.saturating_sub(used),
        holders: Vec::new(),
    };
    Some((reading, bus))
}

/// What each process holds of each GPU, by the GPU's place on the bus: the kernel tells it at every open file of it.
fn holders(proc: &Path) -> BTreeMap<String, Vec<Holder>> {
    let mut held: BTreeMap<String, BTreeMap<u32, BTreeMap<String, u64>>> = BTreeMap::new();
    for pid in pids(proc) {
        let Ok(files) = fs::read_dir(proc.join(format!("{pid}/fdinfo"))) else { continue };
        for file in files.flatten() {
            let Ok(text) = fs::read_to_string(file.path()) else { continue };
            if let Some((bus, client, bytes)) = client(&text) {
                // The same client may be open several times.
                held.entry(bus).or_default().entry(pid).or_default().insert(client, bytes);
            }
        }
    }
    let sum = |clients: BTreeMap<String, u64>| clients.into_values().fold(0, u64::saturating_add);
    held.into_iter()
        .map(|(bus, of)| {
            (bus, of.into_iter().map(|(pid, clients)| Holder { pid, bytes: Some(sum(clients)) }).collect())
        })
        .collect()
}

fn pids(proc: &Path) -> Vec<u32> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The bus, the client and the bytes of VRAM in one file's `fdinfo`.
fn client(text: &str) -> Option<(String, String, u64)> {
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim));
    let bus = field("drm-pdev")?;
    let vram = field("drm-memory-vram").or_else(|| field("drm-resident-vram"))?;
    let (number, unit) = vram.split_once(' ').unwrap_or((vram, ""));
    let scale = match unit {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => 1,
    };
    let bytes = number.parse::<u64>().ok()?.checked_mul(scale)?;
    Some((bus.to_owned(), field("drm-client-id").unwrap_or_default().to_owned(), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder as the kernel shows it, after its documentation; no machine with such a GPU was at hand.
    fn sysfs(cards: &[(&str, &[(&str, &str)])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (n, (card, files)) in cards.iter().enumerate() {
            let device = root.path().join(format!("pci/0000:0{n}:00.0"));
            fs::create_dir_all(&device).unwrap();
            for (name, text) in *files {
                fs::write(device.join(name), format!("{text}\n")).unwrap();
            }
            let card = root.path().join("drm").join(card);
            fs::create_dir_all(&card).unwrap();
            std::os::unix::fs::symlink(device, card.join("device")).unwrap();
        }
        root
    }

    #[test]
    fn a_card_is_read_with_what_is_free_of_it() {
        let root = sysfs(&[
            (
                "card1",
                &[
                    ("vendor", "0x1002"),
                    ("mem_info_vram_total", "25753026560"),
                    ("mem_info_vram_used", "1073741824"),
                    ("unique_id", "c1f0a2b3"),
                    ("product_name", "AMD Radeon PRO W7900"),
                ],
            ),
            ("card1-DP-1", &[]),
            ("card2", &[("vendor", "0x8086")]),
            (
                "card3",
                &[("vendor", "0x1002"), ("mem_info_vram_total", "536870912"), ("mem_info_vram_used", "1")],
            ),
        ]);
        let found = read(&root.path().join("drm"));
        let [card] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((card.id.as_str(), card.kind), ("GPU-c1f0a2b3", AcceleratorKind::Amd));
        assert_eq!((card.usable, card.free), (25_753_026_560, 25_753_026_560 - (1 << 30)));
    }

    #[test]
    fn an_open_file_tells_what_its_client_holds() {
        let text = "pos:\t0\nflags:\t02100002\ndrm-driver:\tamdgpu\ndrm-client-id:\t42\ndrm-pdev:\t0000:03:00.0\n\
                    drm-memory-vram:\t262144 KiB\n";
        assert_eq!(client(text), Some(("0000:03:00.0".into(), "42".into(), 256 << 20)));
        assert_eq!(client("pos:\t0\n"), None);
    }
}
